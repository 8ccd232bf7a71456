"""What a generate stage would ask, before it is begun: `--dry-run`."""

from __future__ import annotations

from pathlib import Path

from deltalearn.generate.estimate import GenerationEstimate, estimate_generation
from deltalearn.pipeline.generate import STORE
from deltalearn.pipeline.generator import asked_models, make_generators
from deltalearn.pipeline.manifest import MANIFEST, Manifest
from deltalearn.prompts import read_prompts
from deltalearn.recipe import LoadedRecipe, Recipe


def dry_run(loaded: LoadedRecipe, out: Path | None = None, *, retry_errors: bool = False) -> str:
    """Say, in text for people, how many requests and tokens a run would take, and what they cost.

    Prompt tokens are counted by a local model's own tokenizer on a sample of prompts, and guessed
    from the number of characters for a model behind a server.

    Args:
        loaded: A recipe with models and prompts.
        out: The run directory, whose answers are not asked again; default runs/<name>.
        retry_errors: Count what ended in errors as still to ask.
    """
    store = (out or Path("runs") / loaded.recipe.name) / STORE
    prompts, models = estimate_models(loaded.recipe, store, retry_errors=retry_errors)
    return "\n".join([f"prompts: {prompts}", *(line for model in models for line in model.lines())])


def estimate_models(
    recipe: Recipe, store: Path, *, retry_errors: bool = False
) -> tuple[str, list[GenerationEstimate]]:
    """Read the prompts and estimate what each model is asked.

    Args:
        recipe: One with models and prompts.
        store: The answers that there are, if the file exists.
        retry_errors: Count what ended in errors as still to ask.

    Returns:
        Counts of the prompts, in words, and an estimate for each model.
    """
    assert recipe.prompts is not None
    found = read_prompts(**recipe.prompts.model_dump())
    counts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in found.counts.items() if v)
    file = store.parent / MANIFEST
    manifest = Manifest.read(file) if file.is_file() else None  # its day, its commits
    generators = make_generators(recipe, manifest)
    estimates = []
    for name in asked_models(recipe):
        requests = generators[name].requests(found.prompts, len(found.prompts))
        estimates.append(
            estimate_generation(generators[name], requests, store, retry_errors=retry_errors)
        )
    return counts, estimates
