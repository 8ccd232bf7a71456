"""What a generate stage would ask, before it is begun: `--dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.pipeline.generate import STORE
from deltalearn.pipeline.generator import asked_models, make_generators
from deltalearn.recipe import LoadedRecipe

if TYPE_CHECKING:
    from deltalearn.lm.load import Placement


def dry_run(loaded: LoadedRecipe, out: Path | None = None, *, retry_errors: bool = False) -> str:
    """What a run would ask: prompts, requests, what is there already, tokens, and what they cost.

    Prompt tokens are counted by a local model's own tokenizer on a sample of prompts, and guessed
    from the number of characters for a model behind a server.
    """
    from deltalearn.generate.estimate import estimate_generation
    from deltalearn.prompts.read import read_prompts

    recipe = loaded.recipe
    found = read_prompts(**recipe.prompts.model_dump())
    counts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in found.counts.items() if v)
    lines = [f"prompts: {counts}"]
    store = (out or Path("runs") / recipe.name) / STORE
    generators = make_generators(recipe, None, _nowhere)
    for name in asked_models(recipe):
        requests = generators[name].requests(found.prompts, len(found.prompts))
        lines += estimate_generation(generators[name], requests, store, retry_errors=retry_errors)
    return "\n".join(lines)


def _nowhere() -> Placement:
    raise AssertionError("a dry run loads no model")
