"""Tune one model on given pairs: what `deltalearn tune` does, without a pipeline around it.

Works in one process and in several under a launcher (torchrun, accelerate launch), which must
share a file system; then the first one alone writes and prints. Nothing heavy is imported until
there is work to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import source_digest
from deltalearn.lm.locate import locate
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.tune_inputs import (
    counts_text,
    pairs_digest,
    read_config,
    read_examples,
    split_line,
)
from deltalearn.recipe.methods import FREE_TO_CHANGE, METHODS
from deltalearn.recipe.schema import STUDENT
from deltalearn.recipe.tune_file import LoadedTune, TuneRecipe
from deltalearn.util.distributed import Processes
from deltalearn.util.files import digest

if TYPE_CHECKING:
    pass

STAGE = "tune"
MODELS_LEFT = ("final", "checkpoints")  # what is worth keeping of a run
FOLDERS_LEFT = ("adapter", *MODELS_LEFT, "tracker")
FILES_LEFT = ("log.jsonl", "evals.jsonl")
SHOWN_OF_LAST_STEP = ("loss", "margin", "accuracy")

Say = Callable[[str], None]


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
    everything worth telling. Raises UserError if `out` holds a run with other settings or inputs
    and not `update`.
    """
    method = loaded.recipe.tune.method
    if reference is not None and not METHODS[method].reference:
        raise UserError(f"--reference has no effect on {method}, which has none; remove it")
    out = out or Path("runs") / loaded.recipe.name
    processes = Processes(loaded.recipe.device)
    opened: list[RunDirectory] = []

    def open_directory() -> None:
        free = {f"tune.{key}" for key in FREE_TO_CHANGE}
        opened.append(RunDirectory(out, loaded, update=update, free=free, hold=True))

    processes.by_first(open_directory)
    try:
        _Tuning(
            loaded.recipe,
            out,
            reference or out / "reference",
            processes,
            opened[0] if opened else None,
            update,
            say if processes.first else _silent,
        ).run()
        processes.end()
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
    update: bool
    say: Say

    def run(self) -> None:
        """Tune, unless it was done for the same inputs.

        What other inputs left here is deleted when this run is known to be possible, not before.
        """
        recipe, processes = self.recipe, self.processes
        revision = processes.by_first(lambda: recipe.model.revision or self.pinned())
        self.student = processes.first_then_others(lambda: locate(recipe.model.path, revision))
        self.pairs = processes.by_first(lambda: pairs_digest(recipe.pairs))
        if processes.by_first(self.is_done):
            self.say(f"{self.out / 'final'}: finished already, nothing to do")
            return
        processes.by_first(self.refuse_other_inputs)
        self.prepare()
        processes.by_first(self.forget_other_run)
        if self.directory is None:
            self.work()
        else:
            self.stage(self.directory)

    def stage(self, directory: RunDirectory) -> None:
        """Work, and leave no record of a start that left nothing else.

        Such a record would make mending a mistake in the settings look like another run.
        """
        try:
            directory.stage(STAGE, self.key, ["final", "log.jsonl"], self.work)
        except BaseException:
            if not any((self.out / name).exists() for name in MODELS_LEFT):
                self.forget()
                directory.save()
            raise
        record = directory.manifest["stages"][STAGE]
        self.say(_closing_line(self.out, record["counts"], record["seconds"]))

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the weights."""
        recipe = self.recipe
        return digest(
            {
                "pairs": [self.pairs, recipe.pairs.model_dump()],
                "student": self.student.fingerprint,
                "spec": recipe.tune.model_dump(exclude=FREE_TO_CHANGE),
                "dev": self.dev_digest,
                "seed": recipe.seed,
                "dtype": recipe.dtype,
            }
        )

    @cached_property
    def dev_digest(self) -> Any:
        """Identity of the questions that the student is scored on while it is tuned."""
        dev = self.recipe.tune.dev
        return source_digest(dev.source) if dev else None

    def pinned(self) -> str | None:
        """The commit that this run began with, lest it goes on with another one."""
        assert self.directory is not None
        before = self.directory.manifest["models"].get(STUDENT, {})
        return before.get("commit") if before.get("path") == self.recipe.model.path else None

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        assert self.directory is not None
        return self.directory.is_done(STAGE, self.key)

    @property
    def is_other_run(self) -> bool:
        """Whether what is here was made of other settings or inputs."""
        assert self.directory is not None
        before = self.directory.manifest["stages"].get(STAGE)
        return before is not None and before["key"] != self.key

    def refuse_other_inputs(self) -> None:
        """UserError if files changed since a run here began on them, unless to start over."""
        if self.update or not self.is_other_run:
            return
        raise UserError(
            f"{self.out}: holds a run on other {', '.join(self.changed_inputs())}. Pass --update "
            "to start over and lose its model or checkpoint, or choose another --out."
        )

    def changed_inputs(self) -> list[str]:
        """What is not as the manifest has it."""
        assert self.directory is not None
        before = self.directory.manifest
        found = {
            "pairs (content)": (before.get("pairs", {}).get("digest"), self.pairs),
            "model (content)": (
                before["models"].get(STUDENT, {}).get("fingerprint"),
                self.student.fingerprint,
            ),
            "tune.dev (content)": (before.get("dev"), self.dev_digest),
        }
        return [name for name, (old, new) in found.items() if old != new] or ["inputs"]

    def forget_other_run(self) -> None:
        """Delete what other settings or inputs left here."""
        if self.is_other_run:
            self.forget()

    def forget(self) -> None:
        """Delete what a run left here, and its record."""
        assert self.directory is not None
        for name in FOLDERS_LEFT:
            shutil.rmtree(self.out / name, ignore_errors=True)
        for name in FILES_LEFT:
            (self.out / name).unlink(missing_ok=True)
        self.directory.manifest["stages"].pop(STAGE, None)

    def prepare(self) -> None:
        """Find the device and tokenise the pairs. UserError for what would stop the run later."""
        from deltalearn.lm.load import device_name, place
        from deltalearn.tune.fit import PairLengths, check_fit, steps_on
        from deltalearn.tune.train import split_held_out

        recipe, settings = self.recipe, self.recipe.tune
        self.placement = place(recipe.device, recipe.dtype)
        self.device = device_name(self.placement)
        if line := split_line(recipe.pairs):
            self.say(line)
        examples, self.counts = self.processes.first_then_others(
            lambda: read_examples(recipe, self.student, kept=(self.out / "examples", self.pairs))
        )
        self.say(counts_text(self.counts))
        train, held_out = split_held_out(examples, settings.eval_pairs or 0)
        steps_on(len(train), len(held_out), settings)
        lengths = PairLengths.of(examples)
        config = read_config(self.student)
        if warning := check_fit(config, lengths, settings.method, examples.largest_id):
            self.say(warning)
        self.examples = examples

    def note_inputs(self) -> None:
        """Say in run.json on what was tuned, and from which files by their hashes."""
        if self.directory is None:
            return
        model = {"path": self.recipe.model.path, "fingerprint": self.student.fingerprint}
        if self.student.fingerprint.startswith("hub:"):
            model["commit"] = self.student.fingerprint.rpartition("@")[2]
        manifest = self.directory.manifest
        manifest["models"][STUDENT] = model
        manifest["pairs"] = {"source": self.recipe.pairs.source, "digest": self.pairs}
        manifest["dev"] = self.dev_digest
        manifest["machine"] |= {"device": self.device, "dtype": self.placement.dtype}
        self.directory.save()

    def work(self) -> dict[str, Any]:
        """Tune; all processes together."""
        from deltalearn.tune.reference import FILE, ReferenceCache
        from deltalearn.tune.train import tune

        recipe = self.recipe
        self.note_inputs()
        file = self.reference / FILE
        # Two that make it at the same time find it locked: SQLite does not wait to change modes.
        with self.processes.first_then_others(lambda: ReferenceCache(file)) as cache:
            result = tune(
                self.student,
                self.examples,
                recipe.tune,
                recipe.seed,
                self.out,
                reference=cache,
                placement=self.placement,
                title=recipe.name,
                dev=self.dev(),
                say=self.say,
            )
            read = {**self.counts.as_dict(), "first": self.counts.first}
            return {**read, "reference_scored": cache.scored, **result}

    def dev(self) -> Callable[[Any], dict[str, float]] | None:
        """What scores the student while it is tuned, or None if the recipe does not ask."""
        if self.recipe.tune.dev is None:
            return None
        from deltalearn.evaluate.reference.dev import dev_scores

        return dev_scores(self.recipe.tune.dev, self.student)


def _closing_line(out: Path, counts: dict[str, Any], seconds: float) -> str:
    """Steps taken, which of them `final` is if not the last, and what the last one showed.

    Time is that of the steps, over all starts of the run; `seconds`, of this start, where a log
    has no times.
    """
    last, steps = counts["last"], counts["steps"]
    taken = f"{steps:,} steps"
    if last.get("stopped_early"):
        taken = f"stopped early after {steps:,} of {last['planned_steps']:,} steps"
    parts = [f"{taken} in {last.get('seconds', seconds):,.1f} s"]
    if last.get("final_step", steps) != steps:
        parts.append(f"final is step {last['final_step']:,}")
    shown = [f"{k} {last[k]:.4f}" for k in SHOWN_OF_LAST_STEP if k in last]
    return f"{out / 'final'}: {'; '.join([*parts, 'last step: ' + ', '.join(shown)])}"
