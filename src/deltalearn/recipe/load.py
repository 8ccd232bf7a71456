"""YAML text to Recipe: overrides, where each value came from, and errors that name the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltalearn.errors import UserError
from deltalearn.recipe.commands import COMMANDS, RUN, Command
from deltalearn.recipe.faults import explain
from deltalearn.recipe.keys import whole
from deltalearn.recipe.schema import Recipe
from deltalearn.recipe.template import share_arguments
from deltalearn.recipe.tuning import TuneSpec, replaced
from deltalearn.util.paths import looked_for
from deltalearn.util.text_format import did_you_mean

SHIPPED = Path(__file__).parents[1] / "recipes"  # in a wheel
CHECKOUT = Path(__file__).parents[3] / "recipes"  # in a clone

MOVED = ("model", "seed")  # top-level keys of older recipes: never meant for another section
OPTIONS = "command line"  # what errors and recipe.yaml call a value given as an option


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
    beside = [str(p) for p in sorted(path.parent.glob("*.y*ml")) if p.suffix in (".yaml", ".yml")]
    meant = {**{n: n for n in names}, **{Path(n).stem: n for n in beside}, **{n: n for n in beside}}
    raise UserError(
        f"{place}: no such recipe file{looked_for(place)}; "
        f"shipped recipes: {', '.join(names) or 'none'}{did_you_mean(place, meant)}"
    )


def parse_override(text: str) -> tuple[list[str], Any]:
    """Parse `a.b=value` (the value as YAML) into (["a", "b"], value)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {text}: expected key=value, for example --set tune.lr=1e-4")
    from deltalearn.recipe.yaml_text import read_yaml  # PyYAML takes a while; no --help needs it

    return key.strip().split("."), read_yaml(value, f"--set {text}")


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
        override(values, origins, keys, whole(value, keys), origin)
    share_arguments(values, origins)
    recipe = _validated({**command.defaults, **values}, where, command)
    return LoadedRecipe(command.part(recipe), origins, command)


Given = tuple[list[str], Any, str]  # keys, value, origin


def _from_options(options: Mapping[str, Any], values: dict[str, Any]) -> list[Given]:
    """What options set, in order; those of all models once for each that there is by then."""
    found: list[Given] = []
    there = values.get("models")
    models = list(there) if isinstance(there, dict) else []
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
    """The file of a recipe and the mapping in it, whole but not yet validated."""
    from deltalearn.recipe.yaml_text import read_yaml

    path = find_recipe(str(place))
    values = read_yaml(path.read_bytes(), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values")
    return path, whole(values)


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
    from deltalearn.recipe.yaml_text import one_line

    lines = []
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else key
        pad = "  " * depth
        if isinstance(value, dict) and value:
            lines.append(f"{pad}{one_line(key)}:")
            lines += _commented(value, origins, dotted, depth + 1)
        else:
            origin = origins.get(dotted, "default")
            lines.append(f"{pad}{one_line(key)}: {one_line(value)}  # {origin}")
    return lines
