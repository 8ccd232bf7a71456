"""What a run would take and see, before it is begun: `--preview` and `--dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.errors import UserError
from deltalearn.lm.locate import ModelFiles
from deltalearn.pipeline.tune_inputs import (
    counts_text,
    read_config,
    read_examples,
    split_line,
    tokenizer_files,
)
from deltalearn.recipe import LoadedRecipe, Recipe
from deltalearn.util.paths import local_path

if TYPE_CHECKING:
    from deltalearn.tune.dataset import Examples
    from deltalearn.tune.fit import PairLengths

PREVIEW_FROM = 100  # pairs read at a time to show some; all would take as long as tuning's start
PREVIEW_PAIRS = 2


def check_modes(
    *,
    preview: bool,
    dry_run: bool,
    tflops: float | None,
    reference: Path | None = None,
    update: bool = False,
) -> None:
    """UserError for a mode or an option that another one leaves without effect."""
    if preview and dry_run:
        raise UserError("--preview and --dry-run each show something and stop; give one of them")
    shows = "--preview" if preview else "--dry-run" if dry_run else None
    for option, given in (("--reference", reference is not None), ("--update", update)):
        if shows and given:
            raise UserError(f"{option} has no effect with {shows}, which writes nothing; remove it")
    if tflops is not None and not dry_run:
        raise UserError("--tflops has no effect without --dry-run; remove it")
    if tflops is not None and tflops <= 0:
        raise UserError(f"--tflops {tflops:g}: a rate above zero is needed")


def preview_pairs(loaded: LoadedRecipe) -> str:
    """Two pairs among the first ones, token by token, as the model will see them.

    More is read only where the first ones cannot be used.
    """
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.fit import PairLengths, check_fit
    from deltalearn.tune.preview import preview

    recipe = loaded.recipe
    files = tokenizer_files(recipe.student)
    examples, counts = read_examples(
        recipe.pairs.outside, recipe.tune, files, enough=PREVIEW_PAIRS, batch=PREVIEW_FROM
    )
    lengths = PairLengths.of(examples)
    warning = check_fit(read_config(files), lengths, recipe.tune.method, examples.largest_id)
    page = preview(load_tokenizer(files, chat=False), examples, PREVIEW_PAIRS, counts).rstrip()
    head = f"Of the first {counts.pairs:,} pairs of {recipe.pairs.source}: "
    return "\n".join(filter(None, [split_line(recipe.pairs.outside), warning, head + page]))


def report_dry_run(loaded: LoadedRecipe, tflops: float | None = None) -> str:
    """What the run would take, without weights, and without network if the recipe has `expect`.

    Lengths are counted where pairs and tokenizer are on this disk (or can be had, if there is
    nothing to expect); otherwise they are assumed, and the report says so. tflops: useful
    TFLOP/s that a GPU is expected to reach, for hours.
    """
    from deltalearn.tune.estimate import dry_run, format_dry_run, known_config
    from deltalearn.tune.fit import check_fit, config_obstacle
    from deltalearn.tune.memory import measure_model
    from deltalearn.tune.train import split_held_out

    recipe = loaded.recipe
    files = None
    try:
        files = tokenizer_files(recipe.student, network=recipe.expect is None)
        config = read_config(files)
        about_model = "config read"
    except UserError:
        if recipe.expect is None:
            raise
        files = None
        config = known_config(recipe.expect.architecture)
        about_model = f"not on this disk; ASSUMED: the architecture of {recipe.expect.architecture}"
    lengths, examples, about_pairs = _lengths(recipe, files)
    method, held_out = recipe.tune.method, recipe.tune.eval_pairs or 0
    warning = check_fit(config, lengths, method, -1 if examples is None else examples.largest_id)
    train = None if examples is None else split_held_out(examples, held_out)[0]
    dtype = "bfloat16" if recipe.dtype == "auto" else recipe.dtype  # as on a GPU
    sizes = tuple(
        measure_model(config, dtype, recipe.tune.lora, shard=shard) for shard in (False, True)
    )
    obstacle = config_obstacle(config, lengths, method)
    plan = dry_run(lengths, sizes[0], recipe.tune, recipe.seeds[0], train=train, obstacle=obstacle)
    head = [
        f"Dry run of {recipe.name}: no weights read, nothing trained",
        f"model     {recipe.student.path}: {about_model}",
        f"pairs     {recipe.pairs.source}: {about_pairs}",
        *filter(None, [warning]),
    ]
    return "\n".join(head) + "\n" + format_dry_run(plan, sizes, recipe.tune, dtype, tflops)


def _lengths(recipe: Recipe, files: ModelFiles | None) -> tuple[PairLengths, Examples | None, str]:
    """Lengths of all usable pairs, the pairs if they are here, and how lengths were come by."""
    from deltalearn.tune.estimate import draw_lengths
    from deltalearn.tune.fit import PairLengths

    expect, settings = recipe.expect, recipe.tune
    here = local_path(recipe.pairs.source).exists()
    if files is not None and (here or expect is None):
        examples, counts = read_examples(recipe.pairs.outside, recipe.tune, files)
        lines = filter(None, [counts_text(counts), split_line(recipe.pairs.outside)])
        return PairLengths.of(examples), examples, "\n".join(lines)
    assert expect is not None
    medians = expect.prompt_tokens, expect.chosen_tokens, expect.rejected_tokens
    pairs = min(filter(None, (expect.pairs, settings.max_pairs, recipe.pairs.limit)))
    drawn = draw_lengths(pairs, medians, expect.spread, settings.max_length, recipe.seeds[0])
    missing = "its pairs are here, but not the tokenizer" if here else "not on this disk"
    assumed = (
        f"{missing}; ASSUMED: {pairs:,} usable pairs with lognormal lengths, medians of "
        f"{medians[0]:,} (prompt), {medians[1]:,} (chosen) and {medians[2]:,} (rejected) tokens, "
        f"spread {expect.spread:g}, cut to {settings.max_length:,} tokens"
    )
    return drawn, None, assumed
