"""BIG-Bench Hard: 27 sub-tasks, three chains of thought each. `bbh:cot-v1::tulu` of OLMES."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from deltalearn.evaluate.tulu3.bbh import grader
from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.evaluate.tulu3.examples import lm_eval_task, published
from deltalearn.evaluate.tulu3.items import Splits, dataset, examples, gold, item
from deltalearn.evaluate.tulu3.sources import Row, data_directory, files, hub, numbered, read_json

LOCAL = "bbh/bbh/*.json"


def load(task: str, data_dir: str | None = None, **_: Any) -> Splits:
    """A sub-task's questions; three chains of thought as examples, behind its description."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("SaylorTwift/bbh", task, "test")
    else:
        rows = read_json(files(directory, "bbh", LOCAL, f"bbh/bbh/{task}.json")[0])["examples"]
    description, worked = worked_examples(task)
    test = (
        item(id=name, stratum=task, question=row["input"], target=row["target"], gold=row["target"])
        for name, row in numbered(rows, f"{task}/")
    )
    shown = examples(((row["input"], row["target"]) for row in worked), f"{task}/")
    shown[0]["head"] = f"{description}\n\n"
    return dataset(test, shown)


@cache
def worked_examples(task: str) -> tuple[str, list[Row]]:
    """(description, three examples: input, target) of a sub-task. (Suzgun et al. 2022.)"""
    config = lm_eval_task(f"bbh/cot_fewshot/{task}.yaml")
    samples = config["fewshot_config"]["samples"]
    rows = [{"input": s["input"], "target": s["target"]} for s in samples]
    return config["description"].strip(), published(f"bbh/{task}", rows)


BENCHMARK = Benchmark(
    "bbh",
    "BBH",
    6511,
    "exact match",
    "micro",
    grade=lambda item, results: grader.grade(results[0], gold(item), item["stratum"]),
    notes=lambda: ["the published patterns cannot read 18 of 6,511 gold answers: 99.7 is the most"],
)
score = BENCHMARK.score
