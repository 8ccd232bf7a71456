"""All keys of a recipe as a page, made from the typed settings: docs/recipe.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from deltalearn.recipe.commands import COMMANDS
from deltalearn.recipe.keys import ANY, is_section, present, sections
from deltalearn.recipe.schema import Recipe

TYPES = {
    bool: "true, false", int: "whole number", float: "number", str: "text", dict: "keys and values",
}  # fmt: skip
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
HEAD = """# Keys of a recipe

Made from the code by `deltalearn recipe > docs/recipe.md`; `deltalearn recipe tune` shows one
section. A recipe is one YAML file; each command takes the sections that it needs. `NAME` stands for
a name of your choice. Relative paths start at the directory where the command is given, not at the
recipe. A text in place of a section stands for its `path` or `source`: `student: my-model`,
`prompts: prompts.jsonl`.

What `deltalearn` commands read:
"""


def reference(section: str | None = None) -> str:
    """Write the reference of all keys, or of one section, as Markdown.

    Args:
        section: A top-level key of a recipe; None for all.

    Returns:
        The page.
    """
    names = [section] if section else ["", *_top(True)]
    blocks = ["" if section else "\n".join([HEAD, *_readers()])]
    for name in names:
        parts = [(key, spec) for key, spec in sections() if key.split(".")[0] == name]
        for key, spec in parts:
            blocks.append(_section(key, spec))
    return "\n\n".join(filter(None, blocks)) + "\n"


def section_names() -> list[str]:
    """Sections of a recipe, in order."""
    return list(_top(True))


def _readers() -> Iterator[str]:
    for command in COMMANDS:
        named = ", ".join(f"`{s}`" for s in command.sections if s in _top(True))
        yield f"- `{command.name}`: {named}"


def _top(below: bool) -> list[str]:
    """Top-level keys that are sections, or those that are not."""
    dotted = {key.split(".")[0] for key, _ in sections() if key}
    return [name for name in Recipe.model_fields if (name in dotted) == below]


def _section(key: str, spec: Any) -> str:
    depth = "###" if "." in key.removesuffix(f".{ANY}") else "##"
    title = f"{depth} {key or 'At the top'}"
    about = inspect.cleandoc(spec.__doc__ or "") if key else ""
    rows = [
        _row(name, field) for name, field in spec.model_fields.items() if key or name in _top(False)
    ]
    table = ["| key | value | default | |", "|---|---|---|---|", *rows]
    return "\n\n".join(filter(None, [title, about, "\n".join(table)]))


def _row(name: str, field: FieldInfo) -> str:
    about = field.description or ""
    cells = [f"`{name}`", _value(field), _default(field), about]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(one, bound):g}"
        for one in field.metadata
        for bound, sign in BOUNDS.items()
        if isinstance(getattr(one, bound, None), (int, float))
    ]
    return " ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    annotation = present(annotation)
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        first, *others = get_args(annotation)
        shown = ["..."] if others == [...] else map(_type, others)
        return f"[{', '.join([_type(first), *shown])}]"
    if is_section(annotation):
        return "section"
    if get_origin(annotation) is dict:
        return f"{ANY}: section" if is_section(get_args(annotation)[-1]) else TYPES[dict]
    if get_origin(annotation) in (Union, UnionType):
        return ", ".join(map(_type, get_args(annotation)))
    return TYPES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value == {} or value == () or is_section(type(value)):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
