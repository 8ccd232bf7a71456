"""IFEval: prompts with instructions that a program can check. `ifeval::tulu` of OLMES."""

from __future__ import annotations

from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.ifeval import grader
from deltalearn.evaluate.tulu3.items import Splits, dataset, gold, item
from deltalearn.evaluate.tulu3.sources import Row, rows

LOCAL = "ifeval/*.jsonl"


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Prompts with checkable instructions; gold: their names and arguments."""
    found = rows(data_dir, "ifeval", LOCAL, at=("google/IFEval", None, "train"))
    return dataset(
        item(
            id=str(row["key"]),
            question=row["prompt"],
            gold={"instructions": row["instruction_id_list"], "arguments": row["kwargs"]},
        )
        for row in found
    )


def _grade(item: Row, results: Results) -> Grade:
    asked = gold(item)
    return grader.grade(results[0], asked["instructions"], asked["arguments"])


BENCHMARK = Benchmark(
    "ifeval",
    "IFEval",
    541,
    "prompt-level loose accuracy",
    "micro",
    grade=_grade,
    notes=grader.notes,
)
score = BENCHMARK.score
