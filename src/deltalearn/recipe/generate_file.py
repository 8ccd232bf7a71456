"""The recipe of `deltalearn generate`: models, prompts, and how the one answers the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from deltalearn.errors import UserError
from deltalearn.recipe.base import Name, Spec
from deltalearn.recipe.load import (
    OPTIONS,
    LoadedRecipe,
    explain,
    leaves,
    override,
    parse_override,
    read_values,
)
from deltalearn.recipe.schema import GenerateSpec, GeneratorSpec, PromptsSpec


class GenerateRecipe(Spec):
    """All of one `deltalearn generate`: a ladder of one model or more."""

    name: Name = "generate"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    models: dict[Name, GeneratorSpec] = Field(min_length=1)
    prompts: PromptsSpec
    generate: GenerateSpec = GenerateSpec()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The one seed, as a run's manifest lists them."""
        return (self.generate.seed,)


@dataclass(frozen=True)
class LoadedGenerate(LoadedRecipe):
    """A validated generate recipe and the origin of each given value."""

    recipe: GenerateRecipe


def is_whole_recipe(place: str | Path) -> bool:
    """Whether the file is a recipe of `deltalearn run`, with a student and arms."""
    return "arms" in read_values(place)[1]


def load_generate_recipe(
    place: str | Path | None,
    models: list[str],
    options: Mapping[str, Any],
    overrides: list[str] | None = None,
) -> LoadedGenerate:
    """Read a generate recipe, or start from nothing, and put options and overrides on top.

    models: NAME=PATH, or a path alone, which is then named after its last part. options: values by
    dotted key, None where an option was not given; those of `models.*` are given to every model.
    overrides: `key=value`, the key with its section. Raises UserError naming the key and, for a
    misspelt key, the nearest valid one.
    """
    where: str | Path = OPTIONS
    values: dict[str, Any] = {}
    if place is not None:
        where, values = read_values(place)
    origins = dict.fromkeys(leaves(values), getattr(where, "name", OPTIONS))
    called: dict[str, str] = {}
    for text in models:
        name, path = name_and_path(text)
        if name in called:
            raise UserError(
                f"--model {called[name]} and --model {text} are both called {name!r}; give each a "
                "name of its own: --model NAME=PATH"
            )
        called[name] = text
        override(values, origins, ["models", name], {"path": path}, OPTIONS)
    _refuse_idle(options)
    given = []
    for dotted, value in options.items():
        keys = dotted.split(".")
        if keys[0] == "models":
            given += [(["models", name, *keys[1:]], value) for name in values.get("models") or {}]
        else:
            given.append((keys, value))
    for keys, value in given:
        if value is not None:
            override(values, origins, keys, value, OPTIONS)
    for text in overrides or []:
        keys, value = parse_override(text)
        override(values, origins, keys, value, "--set")
    for section, option in (("models", "model"), ("prompts", "prompts")):
        if section not in values:
            raise UserError(f"give --{option}, or a recipe")
    try:
        return LoadedGenerate(GenerateRecipe.model_validate(values), origins)
    except ValidationError as error:
        raise UserError(explain(where, error, GenerateRecipe)) from error


def _refuse_idle(options: Mapping[str, Any]) -> None:
    """UserError for options about a model that is here, beside the URL of a server."""
    if options.get("models.server.url") is None:
        return
    for key in ("generate.engine", "device", "dtype"):
        if options.get(key) not in (None, "auto"):
            option = key.rpartition(".")[2]
            raise UserError(f"--{option} has no effect beside --url: the server decides; remove it")


def name_and_path(text: str) -> tuple[str, str]:
    """`larger=Qwen/Qwen2.5-3B-Instruct`, or a path alone, named after its last part."""
    name, sign, path = text.partition("=")
    if not sign:
        name, path = text.rstrip("/").rpartition("/")[2], text
    if not name or not path:
        raise UserError(f"--model {text}: expected NAME=PATH, or a path")
    return name, path
