"""GSM8K: word problems, eight fixed chains of thought. `gsm8k::tulu` of OLMES."""

from __future__ import annotations

from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, of_output
from deltalearn.evaluate.tulu3.examples import lm_eval_task, published
from deltalearn.evaluate.tulu3.gsm8k import grader
from deltalearn.evaluate.tulu3.items import Splits, dataset, examples, item
from deltalearn.evaluate.tulu3.sources import Row, numbered, rows

LOCAL = "gsm8k/test.jsonl"


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Word problems; gold: the answer text with its `#### number`."""
    found = rows(data_dir, "gsm8k", LOCAL, at=("openai/gsm8k", "main", "test"))
    test = (
        item(id=name, question=row["question"], target=row["answer"], gold=row["answer"])
        for name, row in numbered(found, "")
    )
    return dataset(test, examples((row["question"], row["answer"]) for row in worked_examples()))


def worked_examples() -> list[Row]:
    """Eight: question, answer. (Wei et al. 2022, with OLMES's last sentence.)"""
    samples = lm_eval_task("gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]
    last = "The answer is", "So the answer is"
    worked = [{"question": s["question"], "answer": s["target"].replace(*last)} for s in samples]
    return published("gsm8k", worked)


BENCHMARK = Benchmark("gsm8k", "GSM8K", 1319, "exact match", "micro", grade=of_output(grader.grade))
score = BENCHMARK.score
