"""Tune one model on given pairs: what `deltalearn tune` does, without a pipeline around it.

Works in one process and in several under a launcher (torchrun, accelerate launch), which must
share a file system; then the first one alone writes and prints. Nothing heavy is imported until
there is work to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.files import digest
from deltalearn.launcher import Processes
from deltalearn.lm.locate import WANTED, ModelFiles, locate
from deltalearn.methods import FREE_TO_CHANGE
from deltalearn.recipe.schema import STUDENT, ModelSpec
from deltalearn.recipe.tune_file import LoadedTune, TuneRecipe
from deltalearn.resources import local_path
from deltalearn.rundir import RunDirectory
from deltalearn.tables import source_digest

if TYPE_CHECKING:
    from deltalearn.tune.dryrun import PairLengths
    from deltalearn.tune.examples import Examples
    from deltalearn.tune.prepare import ExampleCounts

STAGE = "tune"
WITHOUT_WEIGHTS = [pattern for pattern in WANTED if pattern != "*.safetensors"]
PREVIEW_FROM = 100  # pairs read to show some of them; all would take as long as tuning's start
PREVIEW_PAIRS = 2
SHOWN_OF_LAST_STEP = ("loss", "margin", "accuracy")

Say = Callable[[str], None]


def check_modes(*, preview: bool, dry_run: bool, tflops: float | None) -> None:
    """UserError for a mode that another one leaves without effect."""
    if preview and dry_run:
        raise UserError("--preview and --dry-run each show something and stop; give one of them")
    if tflops is not None and not dry_run:
        raise UserError("--tflops has no effect without --dry-run; remove it")
    if tflops is not None and tflops <= 0:
        raise UserError(f"--tflops {tflops:g}: a rate above zero is needed")


def run_tune(
    loaded: LoadedTune,
    out: Path | None = None,
    *,
    reference: Path | None = None,
    update: bool = False,
    say: Say = print,
) -> Path:
    """Tune as `loaded` says in `out` (default runs/<name>); return `out`/final.

    reference: folder of reference log-probabilities, to share one between runs; default
    `out`/reference. Run it again to resume; a finished run does nothing. `say` gets a line for
    everything worth telling. Raises UserError if `out` holds other settings and not `update`.
    """
    out = out or Path("runs") / loaded.recipe.name
    processes = Processes(loaded.recipe.device)
    opened: list[RunDirectory] = []

    def open_directory() -> None:
        opened.append(RunDirectory(out, loaded, update=update))

    processes.by_first(open_directory)
    try:
        _Tuning(
            loaded.recipe,
            out,
            reference or out / "reference",
            processes,
            opened[0] if opened else None,
            say if processes.first else _silent,
        ).run()
    finally:
        for directory in opened:
            directory.close()
    return out / "final"


def _silent(line: str) -> None:
    pass


@dataclass
class _Tuning:
    """One run of the command in one process; only the first has a `directory`."""

    recipe: TuneRecipe
    out: Path
    reference: Path
    processes: Processes
    directory: RunDirectory | None
    say: Say

    def run(self) -> None:
        """Tune, unless it was done for the same inputs."""
        recipe, processes = self.recipe, self.processes
        revision = processes.by_first(lambda: recipe.model.revision or self.pinned())
        self.student = processes.first_then_others(lambda: locate(recipe.model.path, revision))
        self.pairs = processes.by_first(lambda: source_digest(recipe.pairs.source))
        if processes.by_first(self.is_done):
            self.say(f"{self.out / 'final'}: finished already, nothing to do")
        elif self.directory is None:
            self.work()
        else:
            self.directory.stage(STAGE, self.key, ["final", "log.jsonl"], self.work)
            record = self.directory.manifest["stages"][STAGE]
            self.say(_closing_line(self.out, record["counts"], record["seconds"]))

    @property
    def key(self) -> str:
        """Hash of all that decides the weights."""
        recipe = self.recipe
        return digest(
            {
                "pairs": [self.pairs, recipe.pairs.model_dump()],
                "student": self.student.fingerprint,
                "spec": recipe.tune.model_dump(exclude=FREE_TO_CHANGE),
                "dev": source_digest(recipe.tune.dev.source) if recipe.tune.dev else None,
                "seed": recipe.seed,
                "dtype": recipe.dtype,
            }
        )

    def pinned(self) -> str | None:
        """The commit that this run began with, lest it goes on with another one."""
        assert self.directory is not None
        before = self.directory.manifest["models"].get(STUDENT, {})
        return before.get("commit") if before.get("path") == self.recipe.model.path else None

    def is_done(self) -> bool:
        """Whether nothing is left to do; otherwise what other settings left here is deleted."""
        assert self.directory is not None
        if self.directory.is_done(STAGE, self.key):
            return True
        before = self.directory.manifest["stages"].get(STAGE)
        if before is not None and before["key"] != self.key:
            for name in ("adapter", "checkpoints", "final", "tracker"):
                shutil.rmtree(self.out / name, ignore_errors=True)
            for name in ("log.jsonl", "evals.jsonl"):
                (self.out / name).unlink(missing_ok=True)
        return False

    def note_inputs(self, device: str, dtype: str) -> None:
        """Say in run.json on what was tuned, and from which files by their hashes."""
        if self.directory is None:
            return
        model = {"path": self.recipe.model.path, "fingerprint": self.student.fingerprint}
        if self.student.fingerprint.startswith("hub:"):
            model["commit"] = self.student.fingerprint.rpartition("@")[2]
        manifest = self.directory.manifest
        manifest["models"][STUDENT] = model
        manifest["pairs"] = {"source": self.recipe.pairs.source, "digest": self.pairs}
        manifest["machine"] |= {"device": device, "dtype": dtype}
        self.directory.save()

    def work(self) -> dict[str, Any]:
        """Prepare the pairs and tune; all processes together."""
        from deltalearn.lm.load import device_name, place
        from deltalearn.tune.engine import tune
        from deltalearn.tune.reference import ReferenceCache

        recipe = self.recipe
        placement = place(recipe.device, recipe.dtype)
        self.note_inputs(device_name(placement), placement.dtype)
        examples, counts = self.processes.first_then_others(
            lambda: _examples(recipe, self.student, kept=(self.out / "examples", self.pairs))
        )
        self.say(_counts_line(counts))
        with ReferenceCache(self.reference / "answers.sqlite") as cache:
            result = tune(
                self.student,
                examples,
                recipe.tune,
                recipe.seed,
                self.out,
                reference=cache,
                placement=placement,
                title=recipe.name,
                dev=self.dev(),
                say=self.say,
            )
            return {**counts.as_dict(), "reference_scored": cache.scored, **result}

    def dev(self) -> Callable[[Any], dict[str, float]] | None:
        """What scores the student while it is tuned, or None if the recipe does not ask."""
        if self.recipe.tune.dev is None:
            return None
        from deltalearn.evaluate.dev import dev_scores

        return dev_scores(self.recipe.tune.dev, self.student)


def _examples(
    recipe: TuneRecipe,
    student: ModelFiles,
    *,
    limit: int | None = None,
    kept: tuple[Path, Any] | None = None,
) -> tuple[Examples, ExampleCounts]:
    """Tokenised pairs. kept: a folder for the next start to find them in, and their digest."""
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.prepare import prepare_examples
    from deltalearn.tune.sources import read_pairs_from

    columns = recipe.pairs.model_dump(exclude={"source"})
    limit = min(filter(None, (limit, recipe.tune.max_pairs)), default=None)
    folder, pairs = kept or (None, None)
    return prepare_examples(
        load_tokenizer(student, chat=False),
        read_pairs_from(recipe.pairs.source, **columns, limit=limit),
        recipe.tune.max_length,
        truncation=recipe.tune.truncation,
        directory=folder,
        key={"source": pairs, "columns": columns, "limit": limit},
    )


def _counts_line(counts: ExampleCounts) -> str:
    lost = {"unusable rows": counts.unusable, "dropped": counts.dropped}
    parts = [f"pairs: {counts.examples:,} of {counts.pairs:,} used"]
    for what, reasons in lost.items():
        if found := [f"{r.replace('_', ' ')} {n:,}" for r, n in reasons.items() if n]:
            parts.append(f"{what}: {', '.join(found)}")
    return "; ".join(parts)


def _closing_line(out: Path, counts: dict[str, Any], seconds: float) -> str:
    last = [f"{k} {counts['last'][k]:.4f}" for k in SHOWN_OF_LAST_STEP if k in counts["last"]]
    return (
        f"{out / 'final'}: {counts['steps']:,} steps in {seconds:,.1f} s"
        f"; last step: {', '.join(last)}"
    )


def preview_pairs(loaded: LoadedTune) -> str:
    """Two pairs among the first ones, token by token, as the model will see them."""
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.preview import preview

    recipe = loaded.recipe
    files = _tokenizer_files(recipe.model)
    examples, counts = _examples(recipe, files, limit=PREVIEW_FROM)
    head = f"Of the first {PREVIEW_FROM} pairs of {recipe.pairs.source}: "
    return (
        head + preview(load_tokenizer(files, chat=False), examples, PREVIEW_PAIRS, counts).rstrip()
    )


def _tokenizer_files(spec: ModelSpec, *, network: bool = True) -> ModelFiles:
    """Config and tokenizer of a model, of a hub model without its weights."""
    path = local_path(spec.path)
    if path.is_dir():
        return ModelFiles(spec.path, path, "")
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                spec.path,
                revision=spec.revision,
                allow_patterns=WITHOUT_WEIGHTS,
                local_files_only=not network,
            )
        )
    except Exception as error:  # the hub raises a dozen unrelated kinds; all mean "not to be had"
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(
            f"{spec.path}: no directory of that name here, and the Hugging Face hub did not give "
            f"it ({type(error).__name__}: {reason})"
        ) from error
    return ModelFiles(spec.path, path, "")


def report_dry_run(loaded: LoadedTune, tflops: float | None = None) -> str:
    """What the run would take, without weights, and without network if the recipe has `expect`.

    Lengths are counted where pairs and tokenizer are on this disk (or can be had, if there is
    nothing to expect); otherwise they are assumed, and the report says so. tflops: useful
    TFLOP/s that a GPU is expected to reach, for hours.
    """
    from transformers import AutoConfig

    from deltalearn.tune.dryrun import dry_run, format_dry_run, known_shape
    from deltalearn.tune.memory import measure_model

    recipe = loaded.recipe
    files = None
    try:
        files = _tokenizer_files(recipe.model, network=recipe.expect is None)
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False)
        about_model = "config read"
    except (UserError, OSError, ValueError) as error:
        if recipe.expect is None:
            raise UserError(f"{recipe.model.path}: its config cannot be read: {error}") from error
        files = None
        config = known_shape(recipe.expect.shape)
        about_model = f"not on this disk; ASSUMED: the shape of {recipe.expect.shape}"
    lengths, about_pairs = _lengths(recipe, files)
    dtype = "bfloat16" if recipe.dtype == "auto" else recipe.dtype  # as on a GPU
    sizes = tuple(
        measure_model(config, dtype, recipe.tune.lora, shard=shard) for shard in (False, True)
    )
    plan = dry_run(lengths, sizes[0], recipe.tune, recipe.seed)
    head = [
        f"Dry run of {recipe.name}: no weights read, nothing trained",
        f"model     {recipe.model.path}: {about_model}",
        f"pairs     {recipe.pairs.source}: {about_pairs}",
    ]
    return "\n".join(head) + "\n" + format_dry_run(plan, sizes, recipe.tune, dtype, tflops)


def _lengths(recipe: TuneRecipe, files: ModelFiles | None) -> tuple[PairLengths, str]:
    """Lengths of all usable pairs, and how they were come by."""
    from deltalearn.tune.dryrun import PairLengths, draw_lengths

    expect, settings = recipe.expect, recipe.tune
    here = local_path(recipe.pairs.source).exists()
    if files is not None and (here or expect is None):
        examples, counts = _examples(recipe, files)
        arrays = examples.prompt_lengths, examples.chosen_lengths, examples.rejected_lengths
        return PairLengths(*arrays), _counts_line(counts)
    assert expect is not None
    medians = expect.prompt_tokens, expect.chosen_tokens, expect.rejected_tokens
    pairs = min(expect.pairs, settings.max_pairs or expect.pairs)
    drawn = draw_lengths(pairs, medians, expect.spread, settings.max_length, recipe.seed)
    missing = "its pairs are here, but not the tokenizer" if here else "not on this disk"
    return drawn, (
        f"{missing}; ASSUMED: {pairs:,} usable pairs with lognormal lengths, medians of "
        f"{medians[0]:,} (prompt), {medians[1]:,} (chosen) and {medians[2]:,} (rejected) tokens, "
        f"spread {expect.spread:g}, cut to {settings.max_length:,} tokens"
    )
