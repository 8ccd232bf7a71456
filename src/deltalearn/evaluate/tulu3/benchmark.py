"""What a benchmark is: a column of the paper's table, and the step from an output to its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.items import gold
from deltalearn.evaluate.tulu3.sources import Row

Kind = Literal["choice", "text", "code", "judged"]
Aggregation = Literal["macro", "micro"]
Results = Sequence[Any]  # lm_eval's: (log-likelihood, greedy) of each choice, or [output]


def of_output(grade: Callable[[str, Any], Grade]) -> Callable[[Row, Results], Grade]:
    """Make the grader of an item from one of (output, gold)."""
    return lambda item, results: grade(results[0], gold(item))


def _no_grade(item: Row, results: Results) -> Grade:
    raise NotImplementedError("its verdict is not made of the output alone")


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's table. How it is asked is in the YAML file of its folder.

    Attributes:
        name: In results and options.
        title: In tables.
        full: Items of the published split; 0: as many as there are.
        metric: What its score is, in words.
        aggregation: macro, the mean of the strata's means; micro, the mean over all items.
        kind: choice needs log-likelihoods, code the sandbox, judged a judge.
        chat: Whether the chat template is applied.
        grade: From an item and what the model gave for it to a verdict; there is none where a
            program has to be run, or a judge asked.
        questions: Whose questions these are. Benchmarks of the same questions, under the same
            names, are split alike; default: the benchmark itself.
        worked: Examples that stand inside the question's own turn, which lm_eval does not count.
        notes: What a reader of its score should know here, a sentence each.
    """

    name: str
    title: str
    full: int
    metric: str
    aggregation: Aggregation
    kind: Kind = "text"
    chat: bool = True
    grade: Callable[[Row, Results], Grade] = _no_grade
    questions: str | None = None
    worked: int = 0
    notes: Callable[[], list[str]] = list

    @property
    def task(self) -> str:
        """Its name in lm_eval."""
        return f"tulu3_{self.name}"

    def score(self, item: Row, results: Results) -> dict[str, float]:
        """The metric of one item; for `process_results`."""
        return {"score": self.grade(item, results).score}
