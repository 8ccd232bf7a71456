"""AlpacaEval 2: instructions, whose answers a judge compares with a reference's.

`alpaca_eval_v2::tulu` of OLMES. Its grader is a judge, asked apart (`deltalearn.evaluate.alpaca`),
so that lm_eval alone gives no score.
"""

from __future__ import annotations

import math
from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results
from deltalearn.evaluate.tulu3.items import Splits, dataset, item
from deltalearn.evaluate.tulu3.sources import Row, hub_file, numbered, rows

LOCAL = "alpaca_eval/reference_*.json"


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Instructions; gold: the reference's answer."""
    place = "tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"
    found = rows(data_dir, "alpaca_eval", LOCAL, at=lambda: hub_file(*place))
    return dataset(
        item(
            id=name,
            cluster=row["dataset"],
            question=row["instruction"],
            gold={"output": row["output"], "generator": row["generator"]},
        )
        for name, row in numbered(found, "")
    )


def score(item: Row, results: Results) -> dict[str, float]:
    """No score before a judge has read it; the length in characters."""
    return {"score": math.nan, "characters": float(len(results[0]))}


BENCHMARK = Benchmark("alpaca_eval", "AlpacaEval 2", 805, "win rate", "micro", "judged")
