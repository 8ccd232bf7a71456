"""Section `evaluate`: how the student, the weak models and every arm are scored."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from deltalearn.recipe.base import Listed, Name, SourceSpec, Spec

Metric = Literal["expected_accuracy", "greedy_accuracy", "loglik"]
ScorerName = Literal[
    "exact", "contains", "last_number", "letter", "gsm8k", "regex", "ifeval", "judge"
]


class ReferenceSpec(SourceSpec):
    """Questions with one reference answer each, and how a model's answer is compared with it.

    scorer: exact, the whole text but for space around it; contains, the reference stands in the
    answer, whatever its case; last_number, by value; letter, of a multiple choice; gsm8k, the
    number behind ####; regex, what `pattern` finds last; ifeval, verifiable instructions.
    """

    split: str | None = Field(
        None, description="Of a hub data set or a folder; default: the only one there is."
    )
    prompt_column: str | None = Field(None, description="Default: by its usual names.")
    answer_column: str = Field("answer", description="Of the reference answer.")
    scorer: ScorerName = Field("exact", description="Compares greedy answers with the reference.")
    pattern: str | None = Field(None, description="Of scorer regex; group 1 is the answer.")
    max_tokens: int = Field(512, ge=1, description="Of a greedy answer.")
    limit: int | None = Field(None, ge=1, description="The first so many questions.")

    @property
    def reading(self) -> dict[str, Any]:
        """Where the questions are and which of them are read, for `formats.questions`."""
        columns = {"prompt_column", "answer_column", "task_column", "ignore_columns"}
        return self.model_dump(include={"source", "split", "limit", *columns})

    @property
    def place(self) -> tuple[str, str | None, None]:
        """Source, split and default split, for `formats.rows`: no split goes before another."""
        return self.source, self.split, None

    def _check(self, metrics: tuple[str, ...]) -> None:
        if "greedy_accuracy" not in metrics:
            self.idle("without the metric greedy_accuracy", "scorer", "pattern")
        if (self.scorer == "regex") != (self.pattern is not None):
            raise ValueError("pattern belongs to scorer: regex; give both or neither")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern: no regular expression ({error})") from None


class QuestionsSpec(ReferenceSpec):
    """A set of own questions, and what to measure on them.

    expected_accuracy: probability of exactly the reference answer. greedy_accuracy: the scorer's
    verdict on the greedy answer. loglik: log-likelihood of the reference and its end, in nats for
    each byte of the reference, so that models with other tokenizers can be compared.
    """

    task_column: str | None = Field(None, description="Scores are averaged over its values.")
    metrics: Listed[tuple[Metric, ...]] = Field(
        default=("expected_accuracy", "greedy_accuracy"),
        min_length=1,
        description="What is measured; the first is the report's headline.",
    )

    @model_validator(mode="after")
    def _effective(self) -> QuestionsSpec:
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metrics names one twice")
        if "greedy_accuracy" not in self.metrics:
            self.idle("without the metric greedy_accuracy", "max_tokens")
        self._check(self.metrics)
        return self


class BackendSpec(Spec):
    """Where the suite's benchmarks and lm_eval's tasks run. Own questions run on transformers."""

    kind: Literal["hf", "vllm", "openai"] = Field("hf", description="What runs the model.")
    dtype: str | None = Field(None, description="Default: the recipe's.")
    device: str | None = Field(None, description="Default: the recipe's.")
    batch_size: int = Field(8, ge=1, description="Requests at a time, of hf.")
    context: int | None = Field(None, ge=1, description="Tokens; default: the model's own.")
    url: str | None = Field(None, description="Of an OpenAI-compatible server.")
    key_env: str | None = Field(None, description="Variable with the server's key.")
    concurrency: int = Field(16, ge=1, description="Requests in flight at a server.")
    tokenizer: str | None = Field(None, description="Of the server's model.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Other arguments of lm_eval's model."
    )

    @model_validator(mode="after")
    def _effective(self) -> BackendSpec:
        for key in ("enable_thinking", "chat_template_args", "chat_template"):
            if key in self.options:
                raise ValueError(
                    f"options.{key} has no effect: prompts are rendered by deltalearn; give the "
                    "arguments of a chat template to the model: student.template"
                )
        served = ("url", "key_env", "concurrency", "tokenizer")
        idle = ("device", "batch_size") if self.kind == "openai" else served
        self.idle(f"on the back-end {self.kind}; remove it", *idle)
        return self


class JudgeSpec(Spec):
    """The model that judges AlpacaEval."""

    evaluator: str = Field(min_length=1, description="Of alpaca_eval, or a file of one's own.")
    model: str | None = Field(None, description="Default: whom the evaluator is published for.")
    url: str | None = Field(None, description="Default: alpaca_eval's own client.")
    key_env: str | None = Field(None, description="Variable with the key of the server.")
    concurrency: int = Field(16, ge=1, description="Requests in flight at it.")
    text_only: bool = Field(False, description="The server gives no log-probabilities.")


class EvaluateSpec(Spec):
    """Benchmarks by name: `tulu3` (the eleven), one of them, own questions, tasks of lm_eval."""

    benchmarks: Listed[tuple[str, ...]] = Field((), description="Default: all own questions.")
    questions: dict[Name, QuestionsSpec] = Field(
        default_factory=dict, description="Own questions, by a name of your choice."
    )
    include_path: str | None = Field(None, description="A directory of lm_eval tasks.")
    split: Literal["test", "dev", "held-out"] = Field(
        "test", description="dev: a fifth, to choose on. held-out: the rest."
    )
    limit: int | None = Field(None, ge=1, description="Items of each benchmark, drawn by hash.")
    reasoning_tokens: int = Field(
        0, ge=0, description="Tokens that reasoning may take beyond each limit of an answer."
    )
    data_dir: str | None = Field(None, description="Local data; default: the hub.")
    backend: BackendSpec = Field(BackendSpec(), description="Where benchmarks run.")
    judge: JudgeSpec | None = Field(None, description="Who judges AlpacaEval.")
    allow_code: bool = Field(False, description="Run generated programs, in a sandbox.")
    unsafe: bool = Field(False, description="Run them even where nothing isolates them.")
    bootstrap: int = Field(10_000, ge=100, description="Draws.")
    token_budget: int = Field(16384, ge=1, description="Tokens of a batch of own questions.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and "source" in values:
            raise ValueError(
                "own questions have a name now: put source, prompt_column, answer_column, "
                "task_column, metrics, max_tokens and limit under questions: {NAME: {source: ...}}"
            )
        return values

    @model_validator(mode="after")
    def _effective(self) -> EvaluateSpec:
        if not self.benchmarks and not self.questions:
            raise ValueError("neither benchmarks nor questions: nothing to evaluate; remove it")
        if len(set(self.benchmarks)) != len(self.benchmarks):
            raise ValueError("benchmarks names one twice")
        for name in self.questions:
            if self.benchmarks and name not in self.benchmarks:
                raise ValueError(f"questions.{name} is not among benchmarks; add or remove it")
        others = set(self.benchmarks) - set(self.questions)
        if not others:
            of_suite = ("include_path", "data_dir", "backend", "judge", "allow_code")
            self.idle("on own questions; remove it", *of_suite)
        if not others & {"alpaca_eval", "tulu3"}:
            self.idle("without the benchmark alpaca_eval; remove it", "judge")
        if not others and not any("greedy_accuracy" in q.metrics for q in self.questions.values()):
            self.idle("where nothing is written; remove it", "reasoning_tokens")
        if not self.allow_code:
            self.idle("without allow_code; remove it", "unsafe")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Benchmarks asked for, as they are written."""
        return self.benchmarks or tuple(self.questions)

    def content(self) -> dict[str, Any]:
        """All that decides the scores; how fast they are computed is left out."""
        values = self.model_dump(exclude={"bootstrap", "token_budget"})
        for key in ("batch_size", "concurrency"):
            del values["backend"][key]
        if values["judge"]:
            del values["judge"]["concurrency"]
        if not self.reasoning_tokens:  # as recipes had it that knew nothing of it
            del values["reasoning_tokens"]
        return values
