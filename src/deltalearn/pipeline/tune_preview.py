"""What a run would take and see, before it is begun: `--preview` and `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalearn.errors import UserError, refuse_idle
from deltalearn.formats.rows import files_line
from deltalearn.lm.clock import today
from deltalearn.lm.locate import locate_tokenizer
from deltalearn.pipeline.contamination import overlap_lines, overlap_of_pairs
from deltalearn.pipeline.generator import rendering_of
from deltalearn.pipeline.tune_inputs import (
    read_config,
    read_examples,
    template_line,
)
from deltalearn.pipeline.tune_rate import Pace
from deltalearn.recipe import LoadedRecipe

PREVIEW_FROM = 100  # pairs read at a time to show some; all would take as long as tuning's start
PREVIEW_PAIRS = 2


def check_modes(
    *,
    preview: bool,
    dry_run: bool,
    tflops: float | None,
    reference: Path | None = None,
    update: bool = False,
    against: Sequence[str] = (),
    data_dir: Path | None = None,
) -> None:
    """Raise UserError for a mode or an option that another one leaves without effect.

    Args:
        preview: Two pairs are to be shown.
        dry_run: An estimate is to be shown.
        tflops: Speed given for the estimate.
        reference: Folder given for the tuning.
        update: Given for the tuning.
        against: Questions to be looked for among the prompts.
        data_dir: Given for them.
    """
    if preview and dry_run:
        raise UserError("--preview and --dry-run each show something and stop; give one of them")
    if preview or dry_run:
        why = f"with {'--preview' if preview else '--dry-run'}, which writes nothing"
        refuse_idle({"--reference": reference, "--update": update}, why)
    if preview:
        refuse_idle({"--against": against or None}, "with --preview, which reads two pairs")
    if not against:
        refuse_idle({"--data-dir": data_dir}, "without --against")
    if not dry_run:
        refuse_idle({"--tflops": tflops}, "without --dry-run")
    if tflops is not None and tflops <= 0:
        raise UserError(f"--tflops {tflops:g}: a rate above zero is needed")


def preview_pairs(loaded: LoadedRecipe) -> str:
    """Show two pairs among the first ones, token by token, as the model will see them.

    More is read only where the first ones cannot be used.
    """
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.fit import PairLengths, check_fit
    from deltalearn.tune.preview import preview

    recipe = loaded.recipe
    spec, pairs = recipe.student, recipe.pairs.outside
    assert spec is not None and pairs is not None  # the command needs them
    files = locate_tokenizer(spec.place, spec.revision, spec.chat_template)
    examples, counts = read_examples(
        pairs,
        recipe.tune,
        files,
        rendering_of(spec, files, recipe.day or today()),
        enough=PREVIEW_PAIRS,
        batch=PREVIEW_FROM,
    )
    lengths = PairLengths.of(examples)
    warning = check_fit(read_config(files), lengths, recipe.tune.method, examples.largest_id)
    page = preview(load_tokenizer(files, chat=False), examples, PREVIEW_PAIRS, counts).rstrip()
    head = f"Of the first {counts.pairs:,} pairs of {pairs.source}: "
    rendered = template_line(pairs, counts, spec.place)
    lines = [files_line(pairs.source, pairs.split), rendered, warning, head + page]
    return "\n".join(filter(None, lines))


def report_dry_run(
    loaded: LoadedRecipe,
    tflops: float | None = None,
    out: Path | None = None,
    against: Sequence[str] = (),
    data_dir: Path | None = None,
) -> str:
    """Estimate a tuning without weights, and without network if the recipe has `expect`.

    Lengths are counted where pairs and tokenizer are on this disk (or can be had, if there is
    nothing to expect); otherwise they are assumed, and the report says so.

    Args:
        loaded: A recipe with a student and pairs from outside.
        tflops: Useful TFLOP/s that a GPU is expected to reach; gives hours.
        out: The run directory; its steps, if it has begun, give hours too. Default runs/<name>.
        against: As for `tune.run_tune`; what is met is said.
        data_dir: Local data of the benchmarks.
    """
    from deltalearn.pipeline.tune_estimate import Student, estimate_tuning, lengths_of_source
    from deltalearn.tune.estimate import format_dry_run

    recipe = loaded.recipe
    spec, pairs = recipe.student, recipe.pairs.outside
    assert spec is not None and pairs is not None  # the command needs them
    student = Student.find(spec, recipe.expect)
    lengths = lengths_of_source(recipe, recipe.tune, pairs, student.files)
    found = estimate_tuning(student, lengths, recipe.tune, recipe.seeds[0], recipe.dtype)
    head = [
        f"Dry run of {recipe.name}: no weights read, nothing trained",
        f"model     {spec.place}: {student.about}",
        f"pairs     {pairs.source}: {lengths.about}",
        *filter(None, [found.warning]),
    ]
    place = out or Path("runs") / recipe.name
    pace = Pace.of(place)
    report = format_dry_run(
        found.plan, found.sizes, found.settings, found.dtype, tflops,
        seconds=pace.seconds, taken=pace.steps, where=str(place),
    )  # fmt: skip
    if against:
        met = overlap_lines(overlap_of_pairs(pairs, recipe.tune.dev, against, data_dir))
        report = "\n".join([report, *met])
    return "\n".join(head) + "\n" + report
