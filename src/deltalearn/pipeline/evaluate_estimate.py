"""What the evaluate stage would ask of each model: items, requests, tokens at most."""

from __future__ import annotations

from dataclasses import dataclass

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.run import DEV_SHARE
from deltalearn.evaluate.tulu3.suite import BY_NAME, asked
from deltalearn.pipeline.evaluate_options import expanded
from deltalearn.recipe.evaluation import EvaluateSpec


@dataclass(frozen=True)
class BenchmarkEstimate:
    """One benchmark on one model.

    Attributes:
        name: In the recipe.
        items: That are asked; None where nobody can tell before it is loaded.
        answers: That are written; choices and likelihoods are only scored.
        max_tokens: Of an answer, at most.
        note: What else there is to know.
    """

    name: str
    items: int | None
    answers: int
    max_tokens: int
    note: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that are written, at most."""
        return self.answers * self.max_tokens


def estimate_evaluation(spec: EvaluateSpec) -> list[BenchmarkEstimate]:
    """Estimate every benchmark of the section, in its order."""
    return [_one(spec, name) for name in expanded(spec.names)]


def _one(spec: EvaluateSpec, name: str) -> BenchmarkEstimate:
    if name in spec.questions:
        return _of_questions(spec, name)
    if name not in BY_NAME:
        return BenchmarkEstimate(name, None, 0, 0, "a task of lm_eval: counted when it is loaded")
    benchmark = BY_NAME[name]
    (tokens, samples), items = asked(benchmark), _selected(spec, benchmark.full)
    note = "the published number of items" if spec.limit is None else ""
    if benchmark.kind == "judged":
        note = f"and {items:,} verdicts of the judge" if spec.judge else "no judge: no score"
    longest = tokens and tokens + spec.reasoning_tokens
    return BenchmarkEstimate(name, items, items * samples if tokens else 0, longest, note)


def _of_questions(spec: EvaluateSpec, name: str) -> BenchmarkEstimate:
    from deltalearn.formats.questions import read_items

    own = spec.questions[name]
    try:
        found = read_items(**own.reading)
    except UserError as error:
        return BenchmarkEstimate(name, None, 0, own.max_tokens, str(error))
    items = _selected(spec, len(found))
    greedy = "greedy_accuracy" in own.metrics
    tokens = own.max_tokens + spec.reasoning_tokens
    return BenchmarkEstimate(name, items, items * greedy, tokens, ", ".join(own.metrics))


def _selected(spec: EvaluateSpec, full: int) -> int:
    """About so many of all items: splits are drawn by hash."""
    part = {"test": full, "dev": full // DEV_SHARE, "held-out": full - full // DEV_SHARE}
    return min(part[spec.split], spec.limit or full)
