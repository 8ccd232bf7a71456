"""MATH: competition problems, four examples of Minerva, scored "flex".

`minerva_math::tulu` of OLMES.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, of_output
from deltalearn.evaluate.tulu3.examples import published
from deltalearn.evaluate.tulu3.items import Splits, dataset, examples, item
from deltalearn.evaluate.tulu3.math import grader
from deltalearn.evaluate.tulu3.sources import Row, hub, rows

LOCAL = "math*/test.jsonl"
SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip
# Places where the four examples of OLMES differ from Minerva's, a typing slip each.
EDITS = (
    (0, "problem", r"\sqrt{x-2}}{\sqrt{5-x}}$.", r"\sqrt{x-2}}{\sqrt{5-x}}$.}"),
    (2, "solution", "30n&=480\\\\\n", "30n&=480\\\n"),
    (3, "problem", "6x-4y&=a,\\\\\n", "6x-4y&=a,\\\n"),
)


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Competition problems of seven subjects; gold: the whole solution."""
    local = "math/test.jsonl", "math500/test.jsonl"
    test = (
        item(
            id=row["unique_id"],
            stratum=row.get("subject") or row["type"],
            question=row["problem"],
            target=row["solution"],
            gold=row["solution"],
        )
        for row in rows(data_dir, "math", LOCAL, *local, at=_of_hub)
    )
    return dataset(test, examples((row["problem"], row["solution"]) for row in worked_examples()))


def _of_hub() -> Iterator[Row]:
    for subject in SUBJECTS:
        for i, row in enumerate(hub("EleutherAI/hendrycks_math", subject, "test")):
            yield {**row, "unique_id": f"{subject}/{i}"}


def worked_examples() -> list[Row]:
    """Four: problem, solution. (Lewkowycz et al. 2022.)"""
    from lm_eval.tasks.minerva_math.utils import list_fewshot_samples

    found = [{"problem": s["problem"], "solution": s["solution"]} for s in list_fewshot_samples()]
    for number, name, theirs, ours in EDITS:
        found[number][name] = found[number][name].replace(theirs, ours)
    return published("minerva", found)


BENCHMARK = Benchmark(
    "math", "MATH", 5000, "flex exact match", "macro", grade=of_output(grader.grade)
)
score = BENCHMARK.score
