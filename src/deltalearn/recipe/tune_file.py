"""The recipe of `deltalearn tune`: one model, one set of pairs, one way to tune."""

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
from deltalearn.recipe.schema import ModelSpec, TuneSpec


class PairsSource(Spec):
    """Where pairs are read from: a file, a folder or a hub id, and in which columns they stand."""

    source: str = Field(min_length=1)
    split: str | None = None  # of a hub data set, or of a folder with files of several
    prompt_column: str | None = None  # default: found by the usual names
    chosen_column: str | None = None
    rejected_column: str | None = None


class ExpectSpec(Spec):
    """What a dry run assumes where it cannot have pairs or config; it has no other effect.

    Lengths are drawn from lognormal distributions with these medians, in tokens, and this spread
    (standard deviation of the logarithm).
    """

    pairs: int = Field(ge=1)  # usable ones
    architecture: str = Field(min_length=1)  # a model whose config ships with the package
    prompt_tokens: int = Field(ge=1)
    chosen_tokens: int = Field(ge=1)
    rejected_tokens: int = Field(ge=1)
    spread: float = Field(ge=0)


class TuneRecipe(Spec):
    """All of one `deltalearn tune`; every key has an option, or is set by --set."""

    name: Name = "tune"
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    model: ModelSpec
    pairs: PairsSource
    tune: TuneSpec = TuneSpec()
    expect: ExpectSpec | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The one seed, as a run's manifest lists them."""
        return (self.seed,)


# What --set does not reach, and what does.
OPTIONS_OF = {
    "seed": "--seed",
    "device": "--device",
    "dtype": "--dtype",
    "model": "--model",
    "model.path": "--model",
    "pairs": "--pairs",
    "pairs.source": "--pairs",
    "out": "--out",
    "limit": "--limit",
    "reference": "--reference",
}
for _key in ("split", "prompt_column", "chosen_column", "rejected_column"):
    OPTIONS_OF[_key] = OPTIONS_OF[f"pairs.{_key}"] = f"--{_key.replace('_', '-')}"


@dataclass(frozen=True)
class LoadedTune(LoadedRecipe):
    """A validated tune recipe and the origin of each given value."""

    recipe: TuneRecipe


def load_tune_recipe(
    place: str | Path | None,
    options: Mapping[str, Any],
    overrides: list[str] | None = None,
) -> LoadedTune:
    """Read a tune recipe, or start from nothing, and put options and overrides on top.

    options: values by dotted key, None where an option was not given. overrides: `key=value` with
    keys of the section `tune`; they win over options, and those over the file. Raises UserError
    naming the key and, for a misspelt key, the nearest valid one.
    """
    where: str | Path = OPTIONS
    values: dict[str, Any] = {}
    if place is not None:
        where, values = read_values(place)
        if "arms" in values:
            raise UserError(
                f"{where}: a recipe for `deltalearn run`, with models to generate from and arms "
                f"to compare; use `deltalearn run {place}`"
            )
    origins = dict.fromkeys(leaves(values), getattr(where, "name", OPTIONS))
    given = [(key.split("."), value, OPTIONS) for key, value in options.items()]
    for text in overrides or []:
        keys, value = parse_override(text)
        inside = keys[1:] if keys[0] == "tune" and len(keys) > 1 else keys  # as `run --set` has it
        if option := OPTIONS_OF.get(".".join(inside)):
            raise UserError(f"--set {text}: --set reaches the settings of tuning; give {option}")
        given.append((["tune", *inside], value, "--set"))
    given = [(keys, value, origin) for keys, value, origin in given if value is not None]
    _make_room(values, origins, {keys[1]: value for keys, value, _ in given if keys[0] == "tune"})
    for keys, value, origin in given:
        override(values, origins, keys, value, origin)
    if missing := [option for option in ("model", "pairs") if option not in values]:
        raise UserError(f"give --{missing[0]}, or a recipe with --recipe")
    try:
        return LoadedTune(TuneRecipe.model_validate(values), origins)
    except ValidationError as error:
        raise UserError(explain(where, error, TuneRecipe)) from error


def _make_room(values: dict[str, Any], origins: dict[str, str], given: Mapping[str, Any]) -> None:
    """Drop what the file says for another method, and its steps where epochs are given.

    So that an option can replace it; what is given together must still agree.
    """
    section = values.get("tune")
    if not isinstance(section, dict):
        return
    gone = []
    if "method" in given and given["method"] != section.get("method", "dpo_norm"):
        gone = ["beta", "label_smoothing", "gamma", "nll_coef"]
    gone += ["epochs"] if "steps" in given else []
    gone += ["steps"] if "epochs" in given else []
    for key in gone:
        section.pop(key, None)
        origins.pop(f"tune.{key}", None)
