"""PopQA: questions on entities, fifteen fixed examples. `popqa::tulu` of OLMES."""

from __future__ import annotations

from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, of_output
from deltalearn.evaluate.tulu3.examples import are_published
from deltalearn.evaluate.tulu3.items import Splits, dataset, examples, item
from deltalearn.evaluate.tulu3.popqa import grader
from deltalearn.evaluate.tulu3.sources import NoData, Row, data_directory, rows

HUB = "akariasai/PopQA", None, "test"
SHOTS = "tulu3_fewshot/popqa_15shot.json"
LOCAL = f"popqa*/*.jsonl, and {SHOTS}"
EXAMPLES = (  # rows of the data set
    5985932, 724502, 2285098, 2007997, 3785558, 4202904, 6081578, 2180840, 6036329, 867482, 1378543,
    5801967, 4339770, 6418858, 2238655,
)  # fmt: skip


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Entity questions; gold: the aliases of the object."""
    patterns = "popqa/*.jsonl", "popqa_subset/*.jsonl"
    test = (
        item(id=str(row["id"]), question=row["question"], target=aliases[0], gold=aliases)
        for row in rows(data_dir, "popqa", LOCAL, *patterns, at=HUB)
        for aliases in [grader.gold(row)]
    )
    worked = worked_examples(data_dir)
    return dataset(test, examples((row["question"], row["obj"]) for row in worked))


def worked_examples(data_dir: str | None) -> list[Row]:
    """Find the fifteen: question, obj."""
    source = SHOTS if data_directory(data_dir) else HUB[0]
    by_id = {row["id"]: row for row in rows(data_dir, "PopQA's examples", SHOTS, at=HUB)}
    if lost := [i for i in EXAMPLES if i not in by_id]:
        raise NoData(f"{source}: no row with the id {lost[0]}, an example of PopQA's prompts")
    chosen = [{key: by_id[i][key] for key in ("question", "obj")} for i in EXAMPLES]
    if not are_published("popqa", chosen):
        raise NoData(f"{source}: the examples of PopQA's prompts are not the published ones")
    return chosen


BENCHMARK = Benchmark(
    "popqa", "PopQA", 14267, "alias in output", "micro", grade=of_output(grader.grade)
)
score = BENCHMARK.score
