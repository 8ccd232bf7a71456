"""The result directory: results.json, and a Parquet file of items for each benchmark.

Its format is in docs/evaluation.md. `deltalearn evaluate` and the scores of a run are such
directories, and `compare` and `report` read nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.errors import UserError
from deltalearn.evaluate.entries import Entry, ItemRow
from deltalearn.evaluate.reference.benchmark import QuestionBenchmark
from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.evaluate.tulu3.suite import averaged
from deltalearn.stats.bootstrap import can_resample
from deltalearn.stats.sampling import Sampling
from deltalearn.util.files import replacing, write_json

FORMAT = 2
COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("id", "stratum", "cluster")]
    + [("score", pa.float64())]
    + [(name, pa.string()) for name in ("prompt", "output", "reasoning", "extracted", "gold")]
)
Measured = Benchmark | QuestionBenchmark


def items_file(directory: Path, benchmark: str) -> Path:
    """Where the items of a benchmark lie.

    Args:
        directory: The result directory.
        benchmark: Its name there.
    """
    return directory / "items" / f"{benchmark}.parquet"


def write_items(directory: Path, benchmark: str, rows: Sequence[ItemRow]) -> None:
    """Write a benchmark's items; the file appears whole.

    Args:
        directory: The result directory.
        benchmark: Its name there.
        rows: One for each item.
    """
    path = items_file(directory, benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist([{"reasoning": "", **row} for row in rows], COLUMNS),
            temporary,
            compression="zstd",
        )


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Write results.json, with the number of its format.

    Args:
        directory: The result directory.
        results: All else that it says.
    """
    write_json(directory / "results.json", {"format": FORMAT, **results})


def read_results(directory: Path) -> dict[str, Any]:
    """results.json of a result directory. UserError if it is none."""
    file = directory / "results.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory}: no results here ({error}); `deltalearn evaluate` writes them"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(
            f"{file}: made by another version of deltalearn; evaluate again with --update (the "
            "answers in model_outputs.sqlite are not asked again)"
        )
    return found


def summary(benchmark: Measured, rows: Sequence[ItemRow]) -> Entry:
    """Sum up the items of a benchmark: score, stderr, n, and what the score is.

    Args:
        benchmark: What was asked.
        rows: One for each item.

    Returns:
        Score and stderr are None while AlpacaEval is not judged; constant: whether all items have
        the same score, so that it may well tell no models apart.
    """
    scores = np.array([row["score"] for row in rows], dtype=np.float64)
    macro = benchmark.aggregation == "macro"
    entry: Entry = {
        "title": benchmark.title,
        "kind": benchmark.kind,
        "metric": benchmark.metric,
        "aggregation": "macro" if macro else "micro",
        "bounded": getattr(benchmark, "bounded", True),
        "n": len(rows),
    }
    if unit := getattr(benchmark, "unit", None):
        entry["unit"] = unit
    if np.isnan(scores).any():
        return {"score": None, "stderr": None, "constant": False, **entry}
    entry["constant"] = len(scores) > 1 and bool(np.ptp(scores) == 0)
    strata, clusters = ([row[key] for row in rows] for key in ("stratum", "cluster"))
    sampling = Sampling(
        len(rows), strata=strata if macro else None, clusters=clusters if any(clusters) else None
    )
    estimate = sampling.estimate(scores)
    error = float(estimate.se) if can_resample(sampling) else None  # a stratum of one unit: none
    return {"score": float(estimate.value), "stderr": error, **entry}


def average(benchmarks: Mapping[str, Entry]) -> dict[str, Any] | None:
    """The plain mean of the eleven, with and without AlpacaEval; None if one of them is missing.

    Without AlpacaEval's judge the mean of the other ten alone.
    """
    scores = {
        name: found for name, entry in benchmarks.items() if (found := entry["score"]) is not None
    }
    names = averaged({*scores, "alpaca_eval"})
    if names is None:
        return None
    ten = [scores[name] for name in names if name != "alpaca_eval"]
    result: dict[str, Any] = {"mmlu": names[0], "without_alpaca_eval": float(np.mean(ten))}
    if "alpaca_eval" in scores:
        result["score"] = float(np.mean([*ten, scores["alpaca_eval"]]))
    return result
