"""YAML text to Recipe: overrides, where each value came from, and errors that name the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from deltalearn.errors import UserError
from deltalearn.recipe.commands import COMMANDS, RUN, Command
from deltalearn.recipe.schema import Recipe
from deltalearn.recipe.template import share_arguments, whose_arguments
from deltalearn.recipe.tuning import TuneSpec, replaced

SHIPPED = Path(__file__).parents[1] / "recipes"  # in a wheel
CHECKOUT = Path(__file__).parents[3] / "recipes"  # in a clone

MOVED = ("model", "seed")  # top-level keys of older recipes: never meant for another section
OPTIONS = "command line"  # what errors and recipe.yaml call a value given as an option

# What other libraries, and older recipes, call our keys, so that one brought along is recognised.
ALIASES: dict[str, str | tuple[str, ...]] = {
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "batch": "batch_size",
    "micro_batch_size": "token_budget",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "report_to": "tracker",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "loss_type": "method",
    "max_new_tokens": "max_tokens",
    "model": ("path", "student"),
    "seed": "seeds",
    "name_or_path": "path",
    "dataset": "source",
    "api_base": "url",
    "base_url": "url",
    "api_key": "key_env",
    "api_key_env": "key_env",
    "max_concurrency": "concurrency",
    "tensor_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "memory",
    "max_model_len": "context",
    "system_prompt": "system",
    "chat_template_kwargs": "template",
    "n": "samples",
    "extra_body": "body",
    "thoughts": "reasoning",  # our own, of old
    "shape": "architecture",
}


@dataclass(frozen=True)
class LoadedRecipe:
    """A validated recipe, the origin of each given value by its dotted path, and whose it is."""

    recipe: Recipe
    origins: dict[str, str]
    command: Command = RUN

    def values(self) -> dict[str, Any]:
        """All that the command reads of the recipe, every value spelled out, as JSON has it."""
        return self.recipe.model_dump(mode="json", include=set(self.command.sections))

    def resolved_yaml(self) -> str:
        """The same as YAML, each value with a comment saying where it is from."""
        lines = [f"# {self.recipe.name}: as resolved; a comment says where a value came from"]
        lines += _commented(self.values(), self.origins)
        return "\n".join(lines) + "\n"


def find_recipe(place: str) -> Path:
    """A recipe file: a path, or the name of a shipped recipe such as `lab`."""
    path = Path(place).expanduser()
    if path.is_file():
        return path
    for folder in (SHIPPED, CHECKOUT):
        shipped = folder / f"{path.stem}.yaml"
        accepted = (path.stem, f"{path.stem}.yaml", f"recipes/{path.stem}.yaml")
        if place in accepted and shipped.is_file():
            return shipped
    names = sorted({p.stem for f in (SHIPPED, CHECKOUT) if f.is_dir() for p in f.glob("*.yaml")})
    raise UserError(f"{place}: no such recipe file. Shipped recipes: {', '.join(names) or 'none'}")


def parse_override(text: str) -> tuple[list[str], Any]:
    """Parse `a.b=value` (the value as YAML) into (["a", "b"], value)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {text}: expected key=value, for example --set tune.lr=1e-4")
    return key.strip().split("."), _load_yaml(value, f"--set {text}")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-4 as the number it is."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a string that it would take for a number is quoted."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        merges = key_node.tag == "tag:yaml.org,2002:merge"  # `<<` stands for no value of its own
        key = "<<" if merges else loader.construct_object(key_node)
        if key in seen:
            mark = key_node.start_mark
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _side in (_Loader, _Dumper):  # YAML 1.1 takes 1e-4 for a string; everyone means a number
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _load_yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # All but the first come from values: a 13th month, a list as key, a thousand brackets.
        raise UserError(f"{where}: not valid YAML: {error}") from error


def _dump_yaml(value: Any) -> str:
    """`value` on one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def load_recipe(
    place: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    command: Command = RUN,
    options: Mapping[str, Any] | None = None,
) -> LoadedRecipe:
    """Read a recipe, or start from nothing, and put options and overrides on top, and validate it.

    Relative paths inside it are taken from the working directory, as on the command line.

    Args:
        place: a file, the name of a shipped recipe, or None for nothing but options.
        overrides: `key=value` with dotted keys, the value as YAML; they win over options, and
            those over the file. A key without a section is one of the command's home section.
        command: what asks for the recipe; it says what must be there.
        options: values by dotted key, None where an option was not given. `models.*.KEY` is given
            to every model.

    Raises:
        UserError: names the file, the key and, for a misspelt key, the nearest valid one; or what
            the command needs and nobody gave.
    """
    where: str | Path = OPTIONS
    values: dict[str, Any] = {}
    if place is not None:
        where, values = read_values(place)
    origins = dict.fromkeys(leaves(values), getattr(where, "name", OPTIONS))
    given = [*_from_options(options or {}, values), *_from_overrides(overrides, command)]
    _make_room(values, origins, {k[1]: v for k, v, _ in given if k[0] == "tune" and len(k) > 1})
    for keys, value, origin in given:
        override(values, origins, keys, value, origin)
    share_arguments(values, origins)
    recipe = _validated({**command.defaults, **values}, where, command)
    return LoadedRecipe(command.part(recipe), origins, command)


Given = tuple[list[str], Any, str]  # keys, value, origin


def _from_options(options: Mapping[str, Any], values: dict[str, Any]) -> list[Given]:
    """What options set, in order; those of all models once for each that there is by then."""
    found: list[Given] = []
    models = list(values.get("models") or {})
    for dotted, value in options.items():
        if value is None:
            continue
        section, _, rest = dotted.partition(".")
        if section != "models":
            found.append((dotted.split("."), value, OPTIONS))
        elif rest.startswith("*."):
            keys = rest.split(".")[1:]
            found += [(["models", name, *keys], value, OPTIONS) for name in models]
        else:  # a model by its name, in which dots are letters
            models.append(rest)
            found.append((["models", rest], value, OPTIONS))
    return found


def _from_overrides(overrides: Sequence[str], command: Command) -> list[Given]:
    found = []
    for text in overrides:
        keys, value = parse_override(text)
        if command.home and keys[0] not in Recipe.model_fields and keys[0] not in MOVED:
            keys = [command.home, *keys]
        found.append((keys, value, "--set"))
    return found


def _make_room(values: dict[str, Any], origins: dict[str, str], given: Mapping[str, Any]) -> None:
    """Drop what the file says for another method, and its steps where epochs are given.

    So that an option can replace it; what is given together must still agree.
    """
    section = values.get("tune")
    if isinstance(section, dict):
        for key in replaced(section.get("method", TuneSpec().method), given):
            section.pop(key, None)
            origins.pop(f"tune.{key}", None)


def _validated(values: dict[str, Any], where: str | Path, command: Command) -> Recipe:
    """The recipe, or a UserError with a line for everything that is wrong with it."""
    lines = [f"{where}: {line}" for line in command.lacks(values)]
    if lines and (others := [c.name for c in COMMANDS if c is not command and not c.lacks(values)]):
        fitting = " and ".join(f"`deltalearn {name}`" for name in others)
        lines.append(f"{where}: it has what {fitting} needs")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join([*lines, *explain(where, error, Recipe)])) from error
    if fault := None if lines else command.refuses(recipe):
        lines.append(f"{where}: {fault}")
    for arm in recipe.tuned_arms:
        try:
            recipe.tune_of(arm)
        except ValidationError as error:
            lines += explain(where, error, TuneSpec, f"arms.{arm}.tune")
    if lines:
        raise UserError("\n".join(lines))
    return recipe


def read_values(place: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of a recipe and the mapping in it, not yet validated."""
    path = find_recipe(str(place))
    values = _load_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values")
    return path, values


def override(
    values: dict[str, Any], origins: dict[str, str], keys: list[str], value: Any, origin: str
) -> None:
    """Set the value at `keys` inside `values`, and note where it came from."""
    dotted = ".".join(keys)
    section = values
    for depth, key in enumerate(keys[:-1]):
        if section.get(key) is None:  # absent, or written out as null
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            within = ".".join(keys[: depth + 1])
            raise UserError(f"{origin} {dotted}={value}: {within} is a value, not a section")
    section[keys[-1]] = value
    for known in [k for k in origins if k == dotted or k.startswith(dotted + ".")]:
        del origins[known]
    below = leaves(value, dotted) if isinstance(value, dict) else [dotted]
    origins.update(dict.fromkeys(below, origin))


def leaves(values: dict, prefix: str = "") -> list[str]:
    """Dotted paths of all values in nested mappings."""
    found = []
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        found += leaves(value, dotted) if isinstance(value, dict) and value else [dotted]
    return found


def _commented(
    values: dict, origins: dict[str, str], prefix: str = "", depth: int = 0
) -> list[str]:
    lines = []
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else key
        pad = "  " * depth
        if isinstance(value, dict) and value:
            lines.append(f"{pad}{_dump_yaml(key)}:")
            lines += _commented(value, origins, dotted, depth + 1)
        else:
            origin = origins.get(dotted, "default")
            lines.append(f"{pad}{_dump_yaml(key)}: {_dump_yaml(value)}  # {origin}")
    return lines


def explain(
    path: Path | str, error: ValidationError, root: type[BaseModel], inside: str = ""
) -> list[str]:
    """Say what is wrong with a recipe: file, key, and for a misspelt key the nearest one.

    Args:
        path: The recipe's file.
        error: pydantic's.
        root: Model that was validated.
        inside: Dotted key of it in the recipe; empty for the whole.

    Returns:
        A line for each fault.
    """
    lines = []
    for item in error.errors():
        where = ".".join(filter(None, [inside, *map(str, item["loc"])]))
        prefix = f"{path}: {where}: " if where else f"{path}: "
        if item["type"] == "extra_forbidden":
            remedy = whose_arguments(str(item["loc"][-1]))
            lines.append(prefix + "unknown key" + (remedy or _suggestion(root, item["loc"])))
        elif item["type"] == "missing":
            lines.append(prefix + "missing; the recipe must give it")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = item.get("input")
            shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {given!r})"
            lines.append(prefix + message + shown)
    return lines


def _suggestion(root: type[BaseModel], location: tuple) -> str:
    valid = _keys_at(root, location[:-1])
    meant = {}
    for alias, keys in ALIASES.items():
        for key in (keys,) if isinstance(keys, str) else keys:
            if key in valid:
                meant[alias] = key
    meant |= {key: key for key in valid}
    near = difflib.get_close_matches(str(location[-1]), meant, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {meant[near[0]]!r}?"
    return f"; valid keys here: {', '.join(valid)}" if valid else ""


def _keys_at(root: type[BaseModel], location: tuple) -> list[str]:
    """Field names that the schema has at `location` under `root`."""
    model: Any = root
    for part in location:
        model = _inside(model, part)
    model = _present(model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return []


def field_at(dotted: str) -> FieldInfo:
    """The field of a recipe at a dotted key, in which * stands for any name."""
    *sections, key = dotted.split(".")
    model: Any = Recipe
    for part in sections:
        model = _inside(model, part)
    return _present(model).model_fields[key]


def _inside(model: Any, part: Any) -> Any:
    """The annotation of what `model` has at the key `part`, None for nothing."""
    model = _present(model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return model.model_fields[part].annotation if part in model.model_fields else None
    return get_args(model)[-1] if get_args(model) else None  # dict[Name, X]: any key leads to X


def _present(annotation: Any) -> Any:
    """X of `X | None`, anything else as it is."""
    parts = get_args(annotation)
    return next(x for x in parts if x is not NoneType) if NoneType in parts else annotation
