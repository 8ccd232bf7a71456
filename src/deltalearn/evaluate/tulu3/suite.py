"""The benchmarks of the suite, in the order of its tables, and their average."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

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
from deltalearn.evaluate.tulu3.sources import NoData, data_directory

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


def averaged(names: set[str]) -> tuple[str, ...] | None:
    """Name the eleven benchmarks of the average among `names`; None if one of them is missing."""
    variant = next((name for name in MMLU if name in names), None)
    if variant is None or not names.issuperset(ELEVEN):
        return None
    return (variant, *ELEVEN)


def local_pattern(benchmark: Benchmark) -> str:
    """Where local data of a benchmark is looked for first, as a glob."""
    module = import_module(f"deltalearn.evaluate.tulu3.{_file(benchmark).parent.name}")
    local = getattr(module, "LOCAL_PLUS" if benchmark is humaneval.PLUS else "LOCAL")
    return local.replace(",", " ").split()[0]


def asked(benchmark: Benchmark) -> tuple[int, int]:
    """Read from a benchmark's YAML, without lm_eval, how it is asked.

    Returns:
        (tokens of an answer at most, 0 where none is written; samples of each).
    """
    config = _config(benchmark)
    tokens = (config.get("generation_kwargs") or {}).get("max_gen_toks", 0)
    return tokens, config.get("repeats", 1)


def questions_on_disk(name: str, data_dir: str | Path | None) -> list[tuple[str, str]]:
    """Read the questions of a benchmark from local data, without lm_eval.

    Args:
        name: Of the benchmark.
        data_dir: As for `sources.data_directory`.

    Returns:
        (id, question) of every item.

    Raises:
        NoData: If its data is not on this disk.
    """
    benchmark = BY_NAME[name]
    directory = data_directory(data_dir)
    if directory is None:
        raise NoData("its data is not on this disk (evaluate.data_dir)")
    config = _config(benchmark)
    module, _, function = config["custom_dataset"].rpartition(".")
    load = getattr(import_module(module), function)
    parts = config.get("task")
    tasks = parts if isinstance(parts, list) else [config]
    return [
        (row["id"], row["question"])
        for task in tasks
        for row in load(data_dir=str(directory), **(task.get("dataset_kwargs") or {}))["test"]
    ]


def _config(benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark's YAML, read without lm_eval."""
    return yaml.safe_load(_file(benchmark).read_text(encoding="utf-8").replace("!function ", ""))


def _file(benchmark: Benchmark) -> Path:
    (file,) = Path(__file__).parent.glob(f"*/{benchmark.task}.yaml")
    return file
