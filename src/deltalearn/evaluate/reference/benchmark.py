"""A set of questions with reference answers as benchmarks: one for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalearn.evaluate.reference.scorers import Scorer
from deltalearn.formats.questions import Item

LIKELIHOOD = {  # metrics of the reference answer's own probability: what results call them
    "expected_accuracy": "probability of the reference answer",
    "loglik": "log-likelihood per token of the reference answer",
}


@dataclass(frozen=True)
class QuestionBenchmark:
    """One metric of one set of questions, called `<set>.<measure>`; a stratum is a task."""

    questions: str
    measure: str
    scorer: Scorer

    kind = "reference"
    aggregation = "macro"

    @property
    def name(self) -> str:
        """As a file name, and in results."""
        return f"{self.questions}.{self.measure}"

    @property
    def title(self) -> str:
        """As people read it."""
        return f"{self.questions} {self.measure.replace('_', ' ')}"

    @property
    def metric(self) -> str:
        """What the score is."""
        return LIKELIHOOD.get(self.measure, self.scorer.title)

    @property
    def bounded(self) -> bool:
        """Whether its scores are in [0, 1]."""
        return self.measure != "loglik"


def item_rows(
    items: Sequence[Item], scored: Sequence[dict[str, Any]], metric: str
) -> list[dict[str, Any]]:
    """Rows of a result directory's items, from those of `score_model`."""
    greedy = metric == "greedy_accuracy"
    return [
        {
            "id": item.id,
            "stratum": item.task,
            "cluster": "",
            "score": row[metric],
            "prompt": row["prompt"],
            "output": row["greedy_answer"] if greedy else "",
            "extracted": row["extracted"] if greedy else "",
            "gold": item.answer,
        }
        for item, row in zip(items, scored, strict=True)
    ]
