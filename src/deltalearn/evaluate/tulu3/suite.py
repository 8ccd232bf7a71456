"""The benchmarks of the suite, in the order of its tables, and their average."""

from __future__ import annotations

from deltalearn.evaluate.tulu3 import (
    alpaca_eval,
    bbh,
    drop,
    gsm8k,
    humaneval,
    ifeval,
    math,
    mmlu,
    popqa,
    truthfulqa,
)
from deltalearn.evaluate.tulu3.benchmark import Benchmark

ALL: tuple[Benchmark, ...] = (
    mmlu.LIKELIHOOD,
    mmlu.REASONING,
    popqa.BENCHMARK,
    math.BENCHMARK,
    gsm8k.BENCHMARK,
    alpaca_eval.BENCHMARK,
    ifeval.BENCHMARK,
    bbh.BENCHMARK,
    drop.BENCHMARK,
    truthfulqa.BENCHMARK,
    humaneval.BENCHMARK,
    humaneval.PLUS,
)
BY_NAME = {benchmark.name: benchmark for benchmark in ALL}
MMLU = ("mmlu_cot", "mmlu_mc")  # one of them counts in the average: the first that was run
ELEVEN = tuple(b.name for b in ALL if b.name not in MMLU)  # and one of MMLU


def averaged(names: set[str], mmlu: str | None = None) -> tuple[str, ...] | None:
    """Name the eleven benchmarks of the average; None if one of them is missing.

    Args:
        names: Benchmarks that there are.
        mmlu: The variant that counts; default: the first of MMLU that is there.
    """
    variant = mmlu or next((name for name in MMLU if name in names), None)
    if variant not in names or not names.issuperset(ELEVEN):
        return None
    return (variant, *ELEVEN)
