"""IFEval: prompts with instructions that a program can check. `ifeval::tulu` of OLMES."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.ifeval import grader
from deltalearn.evaluate.tulu3.items import dataset, gold, item
from deltalearn.evaluate.tulu3.sources import Row, data_directory, files, hub, read

if TYPE_CHECKING:
    from datasets import DatasetDict

LOCAL = "ifeval/*.jsonl"


def load(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Prompts with checkable instructions; gold: their names and arguments."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("google/IFEval", None, "train")
    else:
        rows = read(files(directory, "ifeval", LOCAL)[0])
    return dataset(
        item(
            id=str(row["key"]),
            question=row["prompt"],
            gold={"instructions": row["instruction_id_list"], "arguments": row["kwargs"]},
        )
        for row in rows
    )


def _grade(item: Row, results: Results) -> Grade:
    asked = gold(item)
    return grader.grade(results[0], asked["instructions"], asked["arguments"])


def _notes() -> list[str]:
    note = grader.tokenizer_note()
    return [note] if note else []


BENCHMARK = Benchmark(
    "ifeval", "IFEval", 541, "prompt-level loose accuracy", "mean", grade=_grade, notes=_notes
)
score = BENCHMARK.score
