"""Run a recipe stage by stage in a run directory; every stage is resumable and skipped when done.

A stage is identified by a key: the hash of its settings and of the keys of what it reads. Nothing
heavy is imported until a stage has work to do, so that a finished run says so at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.contamination import overlap_stage
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.evaluate_stage import (
    ScoreJob,
    score_jobs,
    score_stage,
    takes_named_devices,
)
from deltalearn.pipeline.first_look import faults, stages_of, students, unfilled_batches
from deltalearn.pipeline.generate import STORE_FILES, generate_stages
from deltalearn.pipeline.pairs import pairs_name, pairs_stage
from deltalearn.pipeline.prompts import prompts_stage
from deltalearn.pipeline.run_options import STAGES, RunOptions
from deltalearn.pipeline.side_by_side import do_side_by_side
from deltalearn.pipeline.stage import Doing, Say, Stage
from deltalearn.pipeline.tune import TuneJob, Tuning, follow, tune_stage
from deltalearn.pipeline.tune_inputs import pairs_digest
from deltalearn.recipe import STUDENT, LoadedRecipe, PairsSource
from deltalearn.util.distributed import Processes, processes_here, several_processes
from deltalearn.util.files import digest


def run_recipe(
    loaded: LoadedRecipe,
    options: RunOptions,
    *,
    say: Say = print,
) -> RunDirectory | None:
    """Run a recipe; run it again to resume. A finished run does nothing.

    Under a launcher all processes train together. The first one does everything else, with as many
    processes of its own at the same time as the launcher started on its machine.

    Args:
        loaded: The recipe.
        options: Where, how far and how.
        say: Gets a line for each stage that worked.

    Returns:
        The run; None in all processes but the first.

    Raises:
        UserError: If something is missing, or the directory holds another run.
    """
    recipe, update = loaded.recipe, options.update
    out = options.out or Path("runs") / recipe.name
    if options.parallel > 1 and several_processes():
        raise UserError(
            "--parallel has no effect under a launcher, where all processes train one arm and seed "
            "after the other; remove it, or start without the launcher"
        )
    processes = Processes(recipe.device)

    def lead() -> RunDirectory:
        with RunDirectory(out, loaded, update=update, may_hold=STORE_FILES, say=say) as directory:
            pipeline = Pipeline(
                recipe, directory, say, update=update, retry_errors=options.retry_errors,
                processes=processes, parallel=options.parallel,
            )  # fmt: skip
            stages = stages_of(recipe, options.until)
            pipeline.check(stages)
            for stage in stages:
                if stage == STAGES[-1]:  # which tells of what the recipe has
                    directory.leave_others({*pipeline.keys, stage})
                getattr(pipeline, stage)()
        return directory

    return processes.lead(lead, lambda job: follow(job, processes))


@dataclass
class Pipeline(Context):
    """The stages of one run. Each method does one stage and leaves its artefacts on disk."""

    processes: Processes = field(kw_only=True)
    parallel: int = 1

    def check(self, stages: Sequence[str]) -> None:
        """Raise UserError for what is missing, before anything works."""
        if "prompts" in stages:
            self._prompts  # noqa: B018 (each finds and identifies what it is called)
        if tuple(stages) != ("prompts",):
            self.generators  # noqa: B018
        if "tune" in stages:
            self._outside  # noqa: B018
        left = [stage for stage in stages if not self.directory.has_done(stage)]
        files = self.models if tuple(stages) != ("prompts",) else {}
        if found := faults(self.recipe, left, files, self.directory.path):
            raise UserError("\n".join(found))
        self.directory.reads({key: digest(value) for key, value in self._contents(stages)})
        if "tune" in left and self.recipe.tuned_arms:
            self.say(students(self.recipe))

    def _contents(self, stages: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """All that the stages read from outside, by the key of the recipe that names it."""
        recipe = self.recipe
        if "prompts" in stages and recipe.prompts is not None:
            yield "prompts.source", source_digest(recipe.prompts.source, recipe.prompts.split)
        if set(stages) - {"prompts"}:
            for name, generator in self.generators.items():
                yield name if name == STUDENT else f"models.{name}", generator.identity
        for name in recipe.tuned_arms if "tune" in stages else ():
            arm, dev = recipe.arms[name], recipe.tune_of(name).dev
            if arm.pairs is not None:  # how they are read is a setting
                yield f"arms.{name}.pairs", pairs_digest(arm.pairs)[0]
            if dev is not None:
                yield f"tune.dev of {name}", source_digest(*dev.place)
        if "evaluate" in stages and recipe.evaluate is not None:
            for name, questions in recipe.evaluate.questions.items():
                yield f"evaluate.questions.{name}", source_digest(*questions.place)

    @cached_property
    def _prompts(self) -> Stage:
        return prompts_stage(self)

    @cached_property
    def _outside(self) -> dict[str, Any]:
        """Identity of the pairs from outside, by arm."""
        arms = self.recipe.arms.items()
        return {name: pairs_digest(arm.pairs) for name, arm in arms if arm.pairs is not None}

    def prompts(self) -> None:
        """Read and keep the prompts: prompts.jsonl and prompts.rejects.jsonl."""
        self.run(self._prompts)
        if found := unfilled_batches(self.recipe, self.directory.counts("prompts")["prompts"]):
            raise UserError("\n".join(found))
        self._overlap()

    def _overlap(self) -> None:
        """Say whether evaluated items are among the training prompts: overlap.json."""
        if stage := overlap_stage(self):
            self.run(stage)

    @property
    def _at_once(self) -> int:
        """Independent stages at work at a time, where each has a process of its own."""
        return max(self.parallel, processes_here())

    def generate(self) -> None:
        """Have every needed model answer, into responses.sqlite."""
        generate_stages(self, self._at_once)

    def pairs(self) -> None:
        """Write one Parquet file for each pairing."""
        for chosen, rejected in self.recipe.pairings:
            self.run(pairs_stage(self, chosen, rejected))

    def tune(self) -> None:
        """Tune every arm once per seed: arms/<arm>/seed-<seed>/final is a model directory."""
        if not self.recipe.generators:  # else it was said beside the prompts
            self._overlap()
        jobs = [
            self._job(arm, seed) for arm in self.recipe.tuned_arms for seed in self.recipe.seeds
        ]
        if self.parallel > 1:
            do_side_by_side(self, jobs, self._tune_stage, self.parallel)
        else:
            for job in jobs:
                self.run(self._tune_stage(job, Tuning(job, self.processes, self.say_once)))

    def _tune_stage(self, job: TuneJob, tuning: Doing) -> Stage:
        folder = job.out.relative_to(self.directory.path).as_posix()
        return tune_stage(folder.replace("arms", "tune", 1), job, tuning, folder)

    def _job(self, arm: str, seed: int) -> TuneJob:
        spec, recipe = self.recipe.tune_of(arm), self.recipe
        pairs, pairs_key, called = self._pairs_of(arm)
        # Arms that read the same pairs in the same way share their ids.
        ids = digest([called, spec.max_pairs, spec.max_length, spec.truncation])[:8]
        return TuneJob(
            title=f"tune {arm} (seed {seed})",
            student=self.models[STUDENT],
            pairs=pairs,
            pairs_key=pairs_key,
            tune=spec,
            seed=seed,
            device=recipe.device,
            dtype=recipe.dtype,
            out=self.path("arms", arm, f"seed-{seed}"),
            examples=self.path("examples", f"{Path(called).name}-{ids}"),
            reference=self.path("reference"),
            rendering=self.generators[STUDENT].rendering,
        )

    def _pairs_of(self, arm: str) -> tuple[PairsSource, Any, str]:
        """Where an arm's pairs are read, what makes them the same, and what they are called."""
        spec = self.recipe.arms[arm]
        if spec.pairs is not None:
            called = f"outside-{digest(spec.pairs.model_dump())[:8]}"
            return spec.pairs, self._outside[arm], called
        assert spec.pairing is not None  # or nothing would be trained
        name = pairs_name(*spec.pairing)
        return PairsSource(source=str(self.path(f"{name}.parquet"))), self.keys[name], name

    def evaluate(self) -> None:
        """Score the student, every weak model that is here and every tuned student."""
        spec = self.recipe.evaluate
        assert spec is not None  # or else the stage is left out
        jobs = score_jobs(self, spec)
        if self.parallel > 1 or self.processes.several:
            at_once = 1 if takes_named_devices(spec) else self._at_once
            do_side_by_side(self, jobs, self._score_stage, at_once)
        else:
            for job in jobs:
                self.run(self._score_stage(job, job.begin(self.say_once)))

    def _score_stage(self, job: ScoreJob, scoring: Doing) -> Stage:
        def prepare() -> None:
            self.placement  # noqa: B018 (run.json says where it was)
            scoring.prepare()

        return replace(score_stage(job, scoring), prepare=prepare)

    def report(self) -> None:
        """Write summary.json and report.html."""

        def work() -> dict[str, Any]:
            from deltalearn.report import write_report

            write_report(self.directory.path)
            if self.recipe.evaluate is None:
                self.say("nothing is scored: the recipe has no section evaluate")
            return {}

        inputs = {
            "stages": dict(self.keys),
            "spec": self.recipe.evaluate.bootstrap if self.recipe.evaluate else None,
        }
        self.run(Stage("report", inputs, ("summary.json", "report.html"), work))
