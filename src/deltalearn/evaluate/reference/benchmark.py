"""A set of questions with reference answers as benchmarks: one for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalearn.evaluate.entries import ItemRow
from deltalearn.evaluate.reference.scorers import Scorer
from deltalearn.formats.questions import Item

LIKELIHOOD = {  # metrics of the reference answer's own probability: what results call them
    "expected_accuracy": "probability of the reference answer",
    "loglik": "log-likelihood per byte of the reference answer",  # of models with any tokenizers
}
PER_BYTE = "nats per byte"


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
        """Its name in results, and of its file."""
        return f"{self.questions}.{self.measure}"

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.questions} {self.measure.replace('_', ' ')}"

    @property
    def metric(self) -> str:
        """The score, in a few words."""
        return LIKELIHOOD.get(self.measure, self.scorer.title)

    @property
    def unit(self) -> str | None:
        """Unit of its scores, None for shares in [0, 1]."""
        return None if self.bounded else PER_BYTE

    @property
    def bounded(self) -> bool:
        """True if its scores are in [0, 1]."""
        return self.measure != "loglik"


def item_rows(
    items: Sequence[Item], scored: Sequence[dict[str, Any]], metric: str
) -> list[ItemRow]:
    """Make rows of a result directory's items.

    Args:
        items: The questions.
        scored: What `score_model` has given for them, in their order.
        metric: The one that is the score.
    """
    greedy = metric == "greedy_accuracy"
    return [
        {
            "id": item.id,
            "stratum": item.task,
            "cluster": "",
            "score": row[metric],
            "prompt": row["prompt"],
            "output": row["greedy_answer"] if greedy else "",
            "reasoning": row["reasoning"] if greedy else "",
            "extracted": row["extracted"] if greedy else "",
            "gold": item.answer,
        }
        for item, row in zip(items, scored, strict=True)
    ]
