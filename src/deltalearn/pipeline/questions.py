"""Own questions of a recipe as benchmarks: which items, how they are asked, what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from deltalearn.evaluate.harness.run import Selection
from deltalearn.evaluate.reference.benchmark import QuestionBenchmark
from deltalearn.evaluate.reference.scorers import scorer
from deltalearn.evaluate.room import reasoning_settings
from deltalearn.formats.questions import Item, read_items
from deltalearn.formats.rows import files_line
from deltalearn.recipe.evaluation import EvaluateSpec, QuestionsSpec
from deltalearn.records import Rendering
from deltalearn.util.files import digest


def question_files(spec: EvaluateSpec) -> list[str]:
    """Write which files are read of every folder of own questions that is asked."""
    asked = [own for name, own in spec.questions.items() if name in spec.names]
    return [line for own in asked if (line := files_line(*own.place))]


@dataclass(frozen=True)
class Questions:
    """A set of questions by its name, and which of them are asked."""

    name: str
    spec: QuestionsSpec
    selection: Selection
    rendering: Rendering = field(default_factory=Rendering)

    @property
    def benchmarks(self) -> list[QuestionBenchmark]:
        """One for each metric."""
        compare = scorer(self.spec.scorer, self.spec.pattern)
        return [QuestionBenchmark(self.name, metric, compare) for metric in self.spec.metrics]

    @cached_property
    def _all(self) -> list[Item]:
        return read_items(**self.spec.reading)

    @cached_property
    def items(self) -> list[Item]:
        """Those that are asked, in their order."""
        chosen = self.selection.of(self.name, [item.id for item in self._all])
        return [item for item in self._all if item.id in chosen]

    @cached_property
    def _docs(self) -> str:
        return digest([[i.id, i.task, list(map(dict, i.messages)), i.answer] for i in self.items])

    def settings(
        self, benchmark: QuestionBenchmark, dtype: str, reasoning_tokens: int = 0
    ) -> dict[str, Any]:
        """Describe for the results how they are asked; other settings are another score."""
        greedy = benchmark.measure == "greedy_accuracy"
        per = {} if benchmark.unit is None else {"unit": benchmark.unit}
        return {
            **per,
            "n": len(self.items),
            "full_n": len(self._all),
            "subset": len(self.items) < len(self._all),
            "docs": self._docs,
            "shots": 0,
            "chat": True,
            "max_tokens": self.spec.max_tokens if greedy else None,
            **reasoning_settings(reasoning_tokens, self.spec.max_tokens if greedy else None),
            "scorer": self.spec.scorer if greedy else None,
            "pattern": self.spec.pattern if greedy else None,
            "stops": [],
            "samples": 1,
            "temperature": 0.0,
            "context": None,
            "dtype": dtype,
            "arguments": {},
            **self.rendering.content(),
        }
