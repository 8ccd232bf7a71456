"""GSM8K: word problems, eight fixed chains of thought. `gsm8k::tulu` of OLMES."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.evaluate.tulu3.examples import lm_eval_task, published
from deltalearn.evaluate.tulu3.gsm8k import grader
from deltalearn.evaluate.tulu3.items import dataset, gold, item
from deltalearn.evaluate.tulu3.sources import Row, data_directory, files, hub, numbered, read

if TYPE_CHECKING:
    from datasets import DatasetDict

LOCAL = "gsm8k/test.jsonl"


def load(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Word problems; gold: the answer text with its `#### number`."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("openai/gsm8k", "main", "test")
    else:
        rows = read(files(directory, "gsm8k", LOCAL)[0])
    test = (
        item(id=name, question=row["question"], target=row["answer"], gold=row["answer"])
        for name, row in numbered(rows, "")
    )
    examples = (
        item(id=f"example/{i}", question=row["question"], target=row["answer"])
        for i, row in enumerate(worked_examples())
    )
    return dataset(test, examples)


def worked_examples() -> list[Row]:
    """Eight: question, answer. (Wei et al. 2022, with OLMES's last sentence.)"""
    samples = lm_eval_task("gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]
    rows = [
        {
            "question": sample["question"],
            "answer": sample["target"].replace("The answer is", "So the answer is"),
        }
        for sample in samples
    ]
    return published("gsm8k", rows, "07b82d8ff31e3c4b")


BENCHMARK = Benchmark(
    "gsm8k",
    "GSM8K",
    1319,
    "exact match",
    "mean",
    grade=lambda item, results: grader.grade(results[0], gold(item)),
)
score = BENCHMARK.score
