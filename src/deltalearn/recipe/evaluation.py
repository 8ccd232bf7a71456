"""What a recipe says of how its models are scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deltalearn.recipe.base import Listed, Spec

Metric = Literal["expected_accuracy", "greedy_accuracy", "loglik"]


class EvaluateSpec(Spec):
    """A file of questions with one reference answer each, and what to measure on them.

    expected_accuracy: probability of exactly the reference answer. greedy_accuracy: whether the
    greedy answer is the reference. loglik: mean log-likelihood per token of the reference.
    """

    source: str = Field(min_length=1)
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    task_column: str | None = None
    metrics: Listed[tuple[Metric, ...]] = Field(
        default=("expected_accuracy", "greedy_accuracy"), min_length=1
    )
    max_tokens: int = Field(default=512, ge=1)  # of a greedy answer
    limit: int | None = Field(default=None, ge=1)
    bootstrap: int = Field(default=10_000, ge=100)
    token_budget: int = Field(default=16384, ge=1)

    @model_validator(mode="after")
    def _effective(self) -> EvaluateSpec:
        if self.changed("max_tokens") and "greedy_accuracy" not in self.metrics:
            raise ValueError("max_tokens has no effect without the metric greedy_accuracy")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metrics names one twice")
        return self
