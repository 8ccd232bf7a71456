"""What is behind the paths that a recipe names: with other content there it is another run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.generator import Generator
from deltalearn.pipeline.tune_inputs import pairs_digest
from deltalearn.recipe import STUDENT, Recipe
from deltalearn.util.files import digest


def contents_of(
    recipe: Recipe, stages: Collection[str], generators: Mapping[str, Generator]
) -> dict[str, str]:
    """Hash all that the stages of a run read from outside.

    Args:
        recipe: The run's.
        stages: Those that are to be done.
        generators: The models of the recipe, identified.

    Returns:
        A hash of each source and model, by the key of the recipe that names it.
    """
    found: dict[str, Any] = {}
    if "prompts" in stages and recipe.prompts is not None:
        found["prompts.source"] = source_digest(recipe.prompts.source, recipe.prompts.split)
    if set(stages) - {"prompts"}:
        for name, generator in generators.items():
            found[name if name == STUDENT else f"models.{name}"] = generator.identity
    if "tune" in stages:
        found |= dict(_tuning(recipe))
    if "evaluate" in stages and recipe.evaluate is not None:
        for name, questions in recipe.evaluate.questions.items():
            found[f"evaluate.questions.{name}"] = source_digest(*questions.place)
    return {key: digest(value) for key, value in found.items()}


def _tuning(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for name in recipe.tuned_arms:
        arm, dev = recipe.arms[name], recipe.tune_of(name).dev
        if arm.pairs is not None:
            yield f"arms.{name}.pairs", pairs_digest(arm.pairs)[0]  # how they are read is a setting
        if dev is not None:
            yield f"tune.dev of {name}", source_digest(*dev.place)
