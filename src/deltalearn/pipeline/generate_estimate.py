"""What a generate stage would ask, before it is begun: `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.pipeline.generate import STORE
from deltalearn.pipeline.generator import Respondent, respondents
from deltalearn.recipe.generate_file import LoadedGenerate
from deltalearn.recipe.load import LoadedRecipe
from deltalearn.recipe.schema import PromptsSpec

if TYPE_CHECKING:
    from deltalearn.lm.load import Placement

Say = Callable[[str], None]


def dry_run(loaded: LoadedGenerate, out: Path | None = None, *, retry_errors: bool = False) -> str:
    """What a run would ask: prompts, requests, what is there already, tokens, and what they cost.

    Prompt tokens are counted by a local model's own tokenizer on a sample of prompts, and guessed
    from the number of characters for a model behind a server.
    """
    recipe = loaded.recipe
    place = out or Path("runs") / recipe.name
    return _dry_run(recipe.prompts, respondents(recipe, {}), place, retry_errors)


def dry_run_of_recipe(
    loaded: LoadedRecipe, out: Path | None = None, *, retry_errors: bool = False
) -> str:
    """`dry_run` of the generate stage of a recipe of `deltalearn run`."""
    recipe = loaded.recipe
    asked = [
        Respondent(name, recipe.model(name), recipe.generate, _nowhere)
        for name in recipe.generators
    ]
    return _dry_run(recipe.prompts, asked, out or Path("runs") / recipe.name, retry_errors)


def _nowhere() -> Placement:
    raise AssertionError("a dry run loads no model")


def _dry_run(
    prompts: PromptsSpec, asked: Iterable[Respondent], out: Path, retry_errors: bool
) -> str:
    from deltalearn.generate.estimate import estimate_generation
    from deltalearn.prompts.read import read_prompts

    found = read_prompts(**prompts.model_dump())
    counts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in found.counts.items() if v)
    lines = [f"prompts: {counts}"]
    store = out / STORE
    for respondent in asked:
        requests = respondent.requests(found.prompts, len(found.prompts))
        lines += estimate_generation(respondent, requests, store, retry_errors=retry_errors)
    return "\n".join(lines)
