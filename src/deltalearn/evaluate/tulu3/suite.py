"""The benchmarks of the suite, in the order of its tables, and their average."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml

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


def local_pattern(benchmark: Benchmark) -> str:
    """Where local data of a benchmark is looked for first, as a glob."""
    module = import_module(f"deltalearn.evaluate.tulu3.{_folder(benchmark)}")
    local = getattr(module, "LOCAL_PLUS" if benchmark is humaneval.PLUS else "LOCAL")
    return local.replace(",", " ").split()[0]


@dataclass(frozen=True)
class Asked:
    """Tokens of a benchmark's answers at most (0: none is written), and samples of each."""

    max_tokens: int
    samples: int


def asked(benchmark: Benchmark) -> Asked:
    """Read from a benchmark's YAML, without lm_eval, how it is asked."""
    file = Path(__file__).parent / _folder(benchmark) / f"{benchmark.task}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8").replace("!function ", ""))
    tokens = (config.get("generation_kwargs") or {}).get("max_gen_toks", 0)
    return Asked(tokens, config.get("repeats", 1))


def _folder(benchmark: Benchmark) -> str:
    (file,) = Path(__file__).parent.glob(f"*/{benchmark.task}.yaml")
    return file.parent.name
