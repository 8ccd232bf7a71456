"""The keys that a recipe may have, by the types of its sections, and the short forms of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deltalearn.recipe.base import Spec
from deltalearn.recipe.schema import Recipe

ANY = "NAME"  # stands for the key of a mapping, which the recipe's writer chooses


def field_at(dotted: str) -> FieldInfo:
    """The field of a recipe at a dotted key, in which * stands for any name."""
    *sections, key = dotted.split(".")
    model: Any = Recipe
    for part in sections:
        model = inside(model, part)
    return present(model).model_fields[key]


def inside(model: Any, part: Any) -> Any:
    """The annotation of what `model` has at the key `part`, None for nothing."""
    model = present(model)
    if is_section(model):
        return model.model_fields[part].annotation if part in model.model_fields else None
    if get_origin(model) is tuple:
        return get_args(model)[0]
    return get_args(model)[-1] if get_args(model) else None  # dict[Name, X]: any key leads to X


def present(annotation: Any) -> Any:
    """X of `X | None`, anything else as it is."""
    parts = get_args(annotation)
    return next(x for x in parts if x is not NoneType) if NoneType in parts else annotation


def is_section(annotation: Any) -> bool:
    """True if keys of a schema stand below it."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def sections(root: Any = Recipe, dotted: str = "") -> Iterator[tuple[str, type[Spec]]]:
    """Each section of a recipe with its dotted key, those in it behind it."""
    root = present(root)
    if is_section(root):
        yield dotted, root
        for name, field in root.model_fields.items():
            yield from sections(field.annotation, f"{dotted}.{name}".lstrip("."))
    elif get_origin(root) is dict:
        yield from sections(get_args(root)[-1], f"{dotted}.{ANY}")


def whole(value: Any, keys: Sequence[str] = (), root: Any = Recipe) -> Any:
    """Write out what a recipe says in its short form: `student: my-model`, `prompts: p.jsonl`.

    Args:
        value: Of the recipe, not validated yet.
        keys: Where it stands below `root`; empty for all of it.
        root: Type of what `keys` lead through.

    Returns:
        The same, with a section wherever there is a text for one whose main key is known.
    """
    for key in keys:
        root = inside(root, key)
    root = present(root)
    if is_section(root) and isinstance(value, str) and root.MAIN:
        return {root.MAIN: value}
    if not isinstance(value, dict):
        return value
    return {key: whole(below, [key], root) for key, below in value.items()}
