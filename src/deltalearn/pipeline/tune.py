"""The stage that tunes one student, for an arm and a seed of a run and for `deltalearn tune`.

Works in one process and in several under a launcher (torchrun, accelerate launch), which must
share a file system; then the first one alone writes and prints. Nothing heavy is imported until
there is work to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from deltalearn.errors import UserError
from deltalearn.formats.rows import files_line, source_digest
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.pipeline.contamination import OVERLAP, overlap_lines, overlap_of_pairs
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.generator import chosen_template_line, model_record, rendering_of
from deltalearn.pipeline.stage import Doing, Job, Say, Stage, silent, tuned_line
from deltalearn.pipeline.tune_inputs import (
    counts_text,
    pairs_digest,
    read_config,
    read_examples,
    template_line,
)
from deltalearn.recipe import STUDENT, LoadedRecipe, PairsSource, TuneSpec
from deltalearn.recipe.methods import FREE_TO_CHANGE, METHODS
from deltalearn.records import Placement, Rendering
from deltalearn.util.distributed import Processes, free_gpus
from deltalearn.util.files import write_json

if TYPE_CHECKING:
    from deltalearn.tune.dataset import Examples
    from deltalearn.tune.tokenize import ExampleCounts

COSTLY = ("final", "checkpoints")  # what is worth keeping of a run
SCRATCH = (*COSTLY, "adapter", "tracker", "log.jsonl", "evals.jsonl")
CALLED = {
    "pairs": "pairs (content)",
    "student": "student (content)",
    "dev": "tune.dev (content)",
    "spec": "settings",
    "template": "student.template",
}


class TuneJob(Job):
    """One student to tune.

    Attributes:
        pairs_key: Identity of the pairs' content.
        out: Where the model goes.
        examples: Folder of the pairs as ids.
        reference: Folder of reference log-probabilities.
        rendering: Of the student's chat template.
    """

    kind: Literal["tune"] = "tune"
    student: ModelFiles
    pairs: PairsSource
    pairs_key: Any
    tune: TuneSpec
    seed: int
    out: Path
    examples: Path
    reference: Path
    rendering: Rendering

    @property
    def alike(self) -> Any:
        """Those on the same pairs: who begins later takes over the reference log-probabilities."""
        return self.pairs_key

    @property
    def held(self) -> Path:
        """Where the model goes: a process that outlived its parent by a moment may be there."""
        return self.out

    def begin(self, say: Say) -> Tuning:
        """Tune in this process alone."""
        return Tuning(self, Processes(self.device), say)

    def inputs(self) -> dict[str, Any]:
        """Collect all that decides the weights."""
        dev = self.tune.dev
        return {
            "pairs": self.pairs_key,
            "student": self.student.fingerprint,
            "spec": self.tune.model_dump(exclude=FREE_TO_CHANGE),
            "dev": source_digest(*dev.place) if dev else None,
            "seed": self.seed,
            "dtype": self.dtype,
            **self.rendering.content(),
        }


def tune_stage(name: str, job: TuneJob, tuning: Doing, folder: str = "") -> Stage:
    """Make the stage of a run that does a job.

    Args:
        name: As in run.json.
        job: The job.
        tuning: Who prepares and does the work.
        folder: The job's `out`, as a path in the run.
    """
    inside = f"{folder}/" if folder else ""
    return Stage(
        name,
        job.inputs(),
        (f"{inside}final", f"{inside}log.jsonl"),
        tuning.work,
        tuning.prepare,
        scratch=tuple(inside + path for path in SCRATCH),
        costly=tuple(inside + path for path in COSTLY),
        called=CALLED,
    )


class Tuning:
    """The work of one job, all processes of a launcher together."""

    def __init__(self, job: TuneJob, processes: Processes, say: Say) -> None:
        self.job = job
        self.processes = processes
        self.say = say if processes.first else silent

    def prepare(self) -> None:
        """Find the device and tokenise the pairs; UserError for what would stop the work later."""
        from deltalearn.lm.load import device_name, place
        from deltalearn.lm.quantized import trained_as
        from deltalearn.tune.fit import PairLengths, check_fit, steps_on
        from deltalearn.tune.float8 import require_float8
        from deltalearn.tune.kernels import require_kernels
        from deltalearn.tune.train import split_held_out

        job, settings = self.job, self.job.tune
        if self.processes.first:
            self.processes.send(job)
        self.placement: Placement = place(job.device, job.dtype)
        self.device = device_name(self.placement)
        self.student = self._student()
        config = read_config(self.student)  # of what kind it is, before pairs are prepared for it
        if stored := trained_as(self.student, settings.lora.bits if settings.lora else None):
            self.say(f"student: {stored}")
        if settings.kernels:
            require_kernels(config, self.placement.device)
        if settings.float8:
            require_float8(self.placement.device, self.placement.dtype)
        if line := files_line(job.pairs.source, job.pairs.split):
            self.say(line)
        self.examples, self.counts = self.processes.first_then_others(self._read)
        self.say(template_line(job.pairs, self.counts, self.student.name))
        self.say(counts_text(self.counts))
        train, held_out = split_held_out(self.examples, settings.eval_pairs or 0)
        steps_on(len(train), len(held_out), settings)
        lengths = PairLengths.of(self.examples)
        if warning := check_fit(config, lengths, settings.method, self.examples.largest_id):
            self.say(warning)

    def work(self) -> dict[str, Any]:
        """Tune the student and return counts."""
        from deltalearn.tune.reference import FILE, ReferenceCache
        from deltalearn.tune.train import tune

        job = self.job
        file = job.reference / FILE

        def cache() -> ReferenceCache:
            with _one_at_a_time(job.reference / ".lock"):  # SQLite does not wait to change modes
                return ReferenceCache(file)

        with self.processes.first_then_others(cache) as reference:
            result = tune(
                self.student,
                self.examples,
                job.tune,
                job.seed,
                job.out,
                reference=reference,
                placement=self.placement,
                title=job.title,
                source=job.pairs.source,
                dev=self._dev(),
                template=job.rendering.arguments,
                say=self.say,
            )
        self.processes.sent_is_done()
        read = {**self.counts.as_dict(), "first": self.counts.first}
        return {**read, "reference_scored": reference.scored, **result}

    def _student(self) -> ModelFiles:
        """The model's files here: the first process has found them, maybe on another machine."""
        student = self.job.student
        if student.directory.is_dir():
            return student
        return locate(student.name, student.commit, student.chat_template)

    def _read(self) -> tuple[Examples, ExampleCounts]:
        job = self.job
        with _one_at_a_time(job.examples.with_name(f".{job.examples.name}.lock")):
            return read_examples(
                job.pairs,
                job.tune,
                self.student,
                job.rendering,
                kept=(job.examples, job.pairs_key),
            )

    def _dev(self) -> Callable[[Any], dict[str, float]] | None:
        """What scores the student while it is tuned, or None if the recipe does not ask."""
        if self.job.tune.dev is None:
            return None
        from deltalearn.evaluate.reference.dev import dev_scores

        return dev_scores(self.job.tune.dev, self.student, self.job.rendering)


def follow(job: TuneJob, processes: Processes) -> None:
    """Do the part that falls to another process of a launcher in a job of the first."""
    tuning = Tuning(job, processes, silent)
    tuning.prepare()
    tuning.work()
    del tuning
    free_gpus()  # for what the first process does next, maybe on all of them


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Wait for other processes of a run that are about to make the same files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file):
        yield


def run_tune(
    loaded: LoadedRecipe,
    out: Path | None = None,
    *,
    reference: Path | None = None,
    update: bool = False,
    against: Sequence[str] = (),
    data_dir: Path | None = None,
    say: Say = print,
) -> Path:
    """Tune one student; run it again to resume. A finished run does nothing.

    Args:
        loaded: A recipe with a student and pairs from outside.
        out: The run directory; default runs/<name>.
        reference: Folder of reference log-probabilities, to share one between runs; default
            `out`/reference.
        update: Let changed settings or inputs start over.
        against: Questions that are looked for among the training prompts, besides `tune.dev`:
            names of benchmarks, and files. What is met is said, and kept in `out`/overlap.json.
        data_dir: Local data of the benchmarks.
        say: Gets a line for everything worth telling.

    Returns:
        The tuned model's directory, `out`/final.

    Raises:
        UserError: If `out` holds a run with other settings or inputs, and not `update`.
    """
    recipe = loaded.recipe
    spec, pairs = recipe.student, recipe.pairs.outside
    assert spec is not None and pairs is not None  # the command needs them
    method = recipe.tune.method
    if reference is not None and not METHODS[method].reference:
        raise UserError(f"--reference has no effect on {method}, which has none; remove it")
    out = out or Path("runs") / recipe.name
    processes = Processes(recipe.device)

    def look() -> None:
        if found := overlap_of_pairs(pairs, recipe.tune.dev, against, data_dir):
            write_json(out / OVERLAP, found)
            for line in overlap_lines(found):
                say(line)

    def lead() -> None:
        with RunDirectory(out, loaded, update=update, say=say) as directory:
            pinned = directory.manifest.pinned(STUDENT, spec.place)
            student = locate(spec.place, spec.revision or pinned, spec.chat_template)
            job = TuneJob(
                title=recipe.name,
                student=student,
                pairs=pairs,
                pairs_key=pairs_digest(pairs),
                tune=recipe.tune,
                seed=recipe.seeds[0],
                device=recipe.device,
                dtype=recipe.dtype,
                out=out,
                examples=out / "examples",
                reference=reference or out / "reference",
                rendering=rendering_of(spec, student, directory.manifest.day),
            )
            tuning = Tuning(job, processes, say)

            def prepare() -> None:
                if line := chosen_template_line(STUDENT, spec):
                    say(line)
                look()
                tuning.prepare()
                manifest = directory.manifest
                manifest.models[STUDENT] = model_record(spec.place, student)
                manifest.machine |= {"device": tuning.device, "dtype": tuning.placement.dtype}

            stage = tune_stage("tune", job, tuning)
            if directory.run(dataclasses.replace(stage, prepare=prepare), over=update):
                say(tuned_line(out / "final", directory.manifest.stages["tune"]))
            else:
                if against:
                    look()
                say(f"{out / 'final'}: finished already, nothing to do")

    processes.lead(lead, lambda job: follow(job, processes))
    return out / "final"
