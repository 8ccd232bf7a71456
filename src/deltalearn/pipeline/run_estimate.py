"""What a whole run would take, stage by stage, before it is begun: `deltalearn run --dry-run`.

Nothing is written, loaded or asked of a network that the recipe's `expect` can stand in for. What
is counted is counted on this machine's files; what is assumed says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from deltalearn.errors import UserError
from deltalearn.generate.estimate import GenerationEstimate
from deltalearn.lm.locate import locate_tokenizer
from deltalearn.pipeline.evaluate_estimate import BenchmarkEstimate, estimate_evaluation
from deltalearn.pipeline.first_look import faults, stages_of, students
from deltalearn.pipeline.generate import STORE
from deltalearn.pipeline.generate_estimate import estimate_models
from deltalearn.pipeline.manifest import DONE, MANIFEST, Manifest, StageRecord
from deltalearn.pipeline.missing import local_models, model_is_here, what_is_missing
from deltalearn.pipeline.pairs import pairs_name
from deltalearn.pipeline.run_options import Rates, RunOptions
from deltalearn.pipeline.tune_estimate import (
    Lengths,
    Student,
    TuneEstimate,
    assumed_lengths,
    estimate_tuning,
    lengths_of_source,
)
from deltalearn.pipeline.tune_rate import Pace
from deltalearn.prompts import read_prompts
from deltalearn.recipe import LoadedRecipe, PairsSource, Recipe
from deltalearn.tune.fit import PairLengths
from deltalearn.util.paths import local_path

GPUS = (1, 2, 4, 8)


def estimate_run(loaded: LoadedRecipe, options: RunOptions, rates: Rates) -> str:
    """Estimate every stage of a run.

    Args:
        loaded: The recipe.
        options: Of the run; what was done in its directory counts as done, and its speed as
            measured.
        rates: Expected speeds.

    Returns:
        Text for people: what is missing here, then requests, tokens, steps and memory by stage,
        and time as far as speeds are known.
    """
    recipe = loaded.recipe
    out = options.out or Path("runs") / recipe.name
    return _RunEstimate(recipe, out, rates, options.retry_errors).text()


@dataclass
class _RunEstimate:
    recipe: Recipe
    out: Path
    rates: Rates
    retry_errors: bool

    def text(self) -> str:
        recipe = self.recipe
        blocks = [
            [f"Dry run of {recipe.name}: nothing is generated, trained or judged"],
            ["missing here", *(f"  {line}" for line in self.missing() or ["nothing"])],
        ]
        if recipe.generators:
            blocks += [["prompts", f"  {self.generation[0]}"], self.generate(), self.pairs()]
        blocks.append(self.tune())
        blocks += [self.evaluate(), self.time()]
        return "\n\n".join("\n".join(block) for block in blocks)

    def missing(self) -> list[str]:
        """What is not here, and what else would stop the run."""
        here, unreadable = {}, []
        for name, model in local_models(self.recipe).items():
            if local_path(model.place).exists():
                try:
                    here[name] = locate_tokenizer(model.place, None, model.chat_template)
                except UserError as error:
                    unreadable.append(str(error))
        stages = stages_of(self.recipe)
        others = faults(self.recipe, stages, here, self.out, launched=False)
        return list(dict.fromkeys([*what_is_missing(self.recipe), *unreadable, *others]))

    # -- what was done here before -----------------------------------------------------------

    @cached_property
    def stages(self) -> dict[str, StageRecord]:
        """Finished stages of the run directory, if there is one."""
        file = self.out / MANIFEST
        found = Manifest.read(file).stages if file.is_file() else {}
        return {name: record for name, record in found.items() if record.state == DONE}

    # -- prompts, generate, pairs ------------------------------------------------------------

    @cached_property
    def generation(self) -> tuple[str, list[GenerationEstimate]]:
        """(what there is of prompts, an estimate for each model that answers)."""
        recipe = self.recipe
        spec = recipe.prompts
        assert spec is not None
        generators = [recipe.model(name) for name in recipe.generators]
        absent = [m.place for m in generators if m.server is None and not model_is_here(m.place)]
        prompts_here = local_path(spec.source).exists()
        if recipe.expect is None or (prompts_here and not absent):
            return estimate_models(recipe, self.out / STORE, retry_errors=self.retry_errors)
        return self._assumed_generation(prompts_here)

    def _assumed_generation(self, prompts_here: bool) -> tuple[str, list[GenerationEstimate]]:
        recipe, expect = self.recipe, self.recipe.expect
        assert expect is not None and recipe.prompts is not None
        if prompts_here:
            number = len(read_prompts(**recipe.prompts.model_dump()).prompts)
            about = f"{number:,} usable"
        else:
            number = min(expect.pairs, recipe.prompts.limit or expect.pairs)
            about = f"{recipe.prompts.source}: not on this disk; ASSUMED: {number:,} usable"
        mean = math.exp(expect.spread**2 / 2)  # of a lognormal, over its median
        sides = {c for c, _ in recipe.pairings}
        found = []
        for name in recipe.generators:
            median = expect.chosen_tokens if name in sides else expect.rejected_tokens
            requests = number * recipe.generate.samples
            most = recipe.generate.max_tokens
            found.append(
                GenerationEstimate(
                    name, requests, requests, 0, expect.prompt_tokens * mean, "ASSUMED",
                    min(median * mean, most), "ASSUMED, the mean of expect's lengths", most, None,
                )
            )  # fmt: skip
        return about, found

    def generate(self) -> list[str]:
        """Requests and tokens of each model."""
        spec = self.recipe.generate
        greedy = "greedy" if spec.temperature == 0 else f"temperature {spec.temperature:g}"
        head = f"generate   {spec.engine}, {greedy}, at most {spec.max_tokens:,} tokens an answer"
        return [head, *(f"  {line}" for e in self.generation[1] for line in e.lines())]

    def pairs(self) -> list[str]:
        """At most how many pairs of each pairing."""
        requests = {e.name: e.requests for e in self.generation[1]}
        return ["pairs      before identical, empty and cut answers are dropped"] + [
            f"  {chosen} over {rejected}: at most {requests[chosen]:,}"
            for chosen, rejected in self.recipe.pairings
        ]

    # -- tune --------------------------------------------------------------------------------

    @cached_property
    def student(self) -> Student:
        """The student, as far as it is here."""
        assert self.recipe.student is not None
        return Student.find(self.recipe.student, self.recipe.expect)

    @cached_property
    def tunings(self) -> dict[str, tuple[TuneEstimate, str]]:
        """{arm: (estimate, how its lengths were found)}."""
        found = {}
        for arm in self.recipe.tuned_arms:
            settings = self.recipe.tune_of(arm)
            lengths = self._lengths(arm)
            estimate = estimate_tuning(
                self.student, lengths, settings, self.recipe.seeds[0], self.recipe.dtype
            )
            found[arm] = estimate, lengths.about
        return found

    def _lengths(self, arm: str) -> Lengths:
        spec, settings = self.recipe.arms[arm], self.recipe.tune_of(arm)
        if spec.pairs is not None:
            return lengths_of_source(self.recipe, settings, spec.pairs, self.student.files)
        assert spec.pairing is not None  # or nothing would be trained
        file = self.out / f"{pairs_name(*spec.pairing)}.parquet"
        if file.is_file() and self.student.files is not None:
            source = PairsSource(source=str(file))
            return lengths_of_source(self.recipe, settings, source, self.student.files)
        if self.recipe.expect is not None:
            return assumed_lengths(self.recipe, settings, None, "not built yet")
        return self._lengths_of_answers(*spec.pairing, settings.max_pairs)

    def _lengths_of_answers(self, chosen: str, rejected: str, most: int | None) -> Lengths:
        """Every pair as long as the answers are expected to be, or at most."""
        models = {e.name: e for e in self.generation[1]}
        sides = [models[chosen], models[rejected]]
        number = min(filter(None, (sides[0].requests, most)))
        means = sides[0].prompt_tokens, *(side.answer_tokens for side in sides)
        tokens = [max(1, round(mean)) for mean in means]
        arrays = [np.full(number, length, np.int64) for length in tokens]
        known = all(side.basis for side in sides)
        about = (
            f"not built yet: {number:,} pairs at most, of answers of "
            f"{'about' if known else 'at most'} {tokens[1]:,} and {tokens[2]:,} tokens"
        )
        return Lengths(PairLengths(*arrays), about)

    def tune(self) -> list[str]:
        """Steps, work and memory of each arm."""
        recipe, device = self.recipe, "cpu" if self.recipe.device == "cpu" else "cuda"
        assert recipe.student is not None
        lines = [
            f"tune       {recipe.student.place}: {self.student.about}; {students(recipe)}",
            f"  {'arm':<20}{'method':<10}{'pairs':>10}{'steps':>8}{'TFLOP/step':>12}"
            f"   GiB a device on {', '.join(map(str, GPUS))} devices",
        ]
        notes = []
        for arm, (found, about) in self.tunings.items():
            memory = "  ".join(f"{found.gib(n, device):.1f}" for n in GPUS)
            kind = "FSDP2" if found.settings.shard else "DDP"
            done = sum(f"tune/{arm}/seed-{seed}" in self.stages for seed in recipe.seeds)
            lines.append(
                f"  {arm:<20}{found.settings.method:<10}{found.plan.pairs:>10,}"
                f"{found.plan.steps:>8,}{found.plan.flops / 1e12:>12,.4g}   {memory} ({kind})"
                + (f", {done} of {len(recipe.seeds)} seeds done" if done else "")
            )
            notes += [f"  {arm}: {about}", *([f"  {found.warning}"] if found.warning else [])]
        return lines + list(dict.fromkeys(notes))

    # -- evaluate ----------------------------------------------------------------------------

    @cached_property
    def benchmarks(self) -> list[BenchmarkEstimate]:
        """An estimate for each benchmark."""
        assert self.recipe.evaluate is not None
        return estimate_evaluation(self.recipe.evaluate)

    @cached_property
    def scored(self) -> int:
        """Models that are scored: student, weak models that are here, every arm and seed."""
        local = sum(model.server is None for model in self.recipe.models.values())
        return 1 + local + len(self.recipe.tuned_arms) * len(self.recipe.seeds)

    def evaluate(self) -> list[str]:
        """Items, requests and tokens of each benchmark, for all models."""
        if self.recipe.evaluate is None:
            return ["evaluate   nothing is scored: the recipe has no section evaluate"]
        arms, seeds = len(self.recipe.tuned_arms), len(self.recipe.seeds)
        lines = [
            f"evaluate   {self.scored} models: the student, the weak ones, {arms} arms x {seeds}",
            f"  {'benchmark':<20}{'items':>8}{'answers a model':>17}{'tokens at most, all':>22}",
        ]
        for found in self.benchmarks:
            items = "?" if found.items is None else f"{found.items:,}"
            lines.append(
                f"  {found.name:<20}{items:>8}{found.answers:>17,}"
                f"{found.tokens * self.scored:>22,}" + (f"   {found.note}" if found.note else "")
            )
        return lines

    # -- time --------------------------------------------------------------------------------

    def time(self) -> list[str]:
        """Hours by stage, as far as speeds are given or measured."""
        rows = [*self._generate_hours(), *self._tune_hours(), *self._evaluate_hours()]
        known = [hours for _, hours, _ in rows if hours is not None]
        lines = ["time"]
        for name, hours, basis in rows:
            lines.append(f"  {name:<34}{_duration(hours):>12}   {basis}")
        if known:
            whole = "all of it" if len(known) == len(rows) else "what is known of it"
            lines.append(f"  {whole:<34}{_duration(sum(known)):>12}")
        return lines

    def _measured_tokens(self) -> float | None:
        """Tokens a second of the generate stages that worked here without a break."""
        counts = [
            (record.counts["tokens"], record.seconds)
            for name, record in self.stages.items()
            if name.startswith("generate/") and record.counts.get("cached") == 0 and record.seconds
        ]
        seconds = sum(s for _, s in counts)
        return sum(t for t, _ in counts) / seconds if seconds else None

    def _token_rate(self) -> tuple[float | None, str]:
        if self.rates.tokens_per_second is not None:
            return self.rates.tokens_per_second, "at --tokens-per-second"
        if measured := self._measured_tokens():
            return measured, f"at {measured:,.0f} tokens/s, measured in {self.out}"
        return None, "unknown: give --tokens-per-second"

    def _generate_hours(self) -> Iterator[tuple[str, float | None, str]]:
        if not self.recipe.generators:
            return
        rate, basis = self._token_rate()
        for found in self.generation[1]:
            name, most = f"generate/{found.name}", "" if found.basis else ", at most"
            if not found.missing:
                yield name, 0.0, "done"
            else:
                yield name, rate and found.answers / rate / 3600, basis + most * bool(rate)

    def _tune_hours(self) -> Iterator[tuple[str, float | None, str]]:
        flops, basis = self._flop_rate()
        scored: set[str] = set()
        for arm, (found, _) in self.tunings.items():
            spec = self.recipe.arms[arm]
            left = [s for s in self.recipe.seeds if f"tune/{arm}/seed-{s}" not in self.stages]
            work = found.plan.flops * found.plan.steps * len(left)
            sides = "/".join(sorted(filter(None, (spec.chosen, spec.rejected))))
            answers = spec.pairs.source if spec.pairs is not None else sides
            if found.plan.reference_flops and left and answers not in scored:
                scored.add(answers)  # both directions share the reference's log-probs
                work += found.plan.reference_flops
            yield (
                f"tune/{arm} x {len(left)} seeds",
                0.0 if not left else flops and work / flops / 3600,
                basis if left else "done",
            )

    def _flop_rate(self) -> tuple[float | None, str]:
        devices = self.rates.devices
        if self.rates.tflops is not None:
            return self.rates.tflops * 1e12 * devices, f"at --tflops on {devices} device(s)"
        work = seconds = 0.0
        for arm, (found, _) in self.tunings.items():
            for seed in self.recipe.seeds:
                record = self.stages.get(f"tune/{arm}/seed-{seed}")
                pace = Pace.of(self.out / "arms" / arm / f"seed-{seed}")
                if record is not None:
                    work += found.plan.flops * found.plan.steps
                    seconds += record.seconds
                elif pace.seconds:
                    work += found.plan.flops * pace.steps
                    seconds += pace.seconds * pace.steps
        if seconds:
            return work / seconds, f"at {work / seconds / 1e12:.3g} TFLOP/s, measured in {self.out}"
        return None, "unknown: give --tflops"

    def _evaluate_hours(self) -> Iterator[tuple[str, float | None, str]]:
        if self.recipe.evaluate is None:
            return
        done = {n: r for n, r in self.stages.items() if n.startswith("evaluate/")}
        left = max(0, self.scored - len(done))
        if done and (each := sum(r.seconds for r in done.values()) / len(done)):
            yield f"evaluate x {left} models", left * each / 3600, f"measured in {self.out}"
            return
        rate, basis = self._token_rate()
        tokens = sum(found.tokens for found in self.benchmarks) * left
        yield (
            f"evaluate x {left} models",
            rate and tokens / rate / 3600,
            f"{basis}, at most, without likelihoods" if rate else basis,
        )


def _duration(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"
