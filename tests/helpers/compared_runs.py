"""Result directories for tests of `compare`, in the format that `deltalearn evaluate` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.compare.command import compare, run_compare
from deltalearn.evaluate.alpaca.length_control import ScoredPairs, pseudo_scores
from deltalearn.evaluate.harness.results import COLUMNS, FORMAT
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME
from deltalearn.recipe import CompareSpec
from deltalearn.stats.sampling import Sampling
from helpers.data import DATA

JUDGE = "weighted_alpaca_eval_gpt4_turbo (gpt-4-1106-preview)"
FAST = 1_000  # draws
ALPACA = DATA / "alpaca_eval"


def items(scores, **columns):
    """Rows of a benchmark; columns: a list each, or one value for all."""
    rows = []
    for i, score in enumerate(scores):
        row = {"id": f"q{i}", "stratum": "", "cluster": "", "prompt": "p", "output": "o"}
        row |= {"extracted": "", "gold": f"gold {i}", "score": float(score)}
        own = {k: v[i] if isinstance(v, list) else v for k, v in columns.items()}
        rows.append(row | own)
    return rows


def entry(name, rows, **changed):
    """A benchmark of results.json that belongs to the rows."""
    benchmark = BY_NAME[name]
    strata = [row["stratum"] for row in rows] if benchmark.aggregation == "macro" else None
    scores = np.array([row["score"] for row in rows])
    value = {
        "score": float(Sampling(len(rows), strata=strata).mean(scores)),
        "stderr": 0.01,
        "title": benchmark.title,
        "kind": benchmark.kind,
        "metric": benchmark.metric,
        "aggregation": "macro" if benchmark.aggregation == "macro" else "micro",
        "bounded": True,
        "n": len(rows),
        "full_n": len(rows),
        "subset": False,
        "shots": 8,
        "chat": True,
        "max_tokens": 512,
        "stops": ["\n\n"],
        "notes": [],
        "judge": JUDGE if name == "alpaca_eval" else None,
    }
    return value | changed


def write(directory: Path, benchmarks, entries=None, **header) -> Path:
    """A result directory of {name: rows}; entries: changes of results.json by benchmark."""
    found = {}
    for name, rows in benchmarks.items():
        path = directory / "items" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), path)
        found[name] = entry(name, rows, **(entries or {}).get(name, {}))
    value = {
        "format": FORMAT,
        "suite": "tulu3",
        "model": {"name": directory.name, "path": "x", "identity": f"sha {directory}"},
        "backend": "vllm",
        "versions": {},
        "split": "test",
        "limit": None,
        "data": "hub",
        "benchmarks": found,
        "not_run": {},
        "average": None,
    }
    (directory / "results.json").write_text(json.dumps(value | header), encoding="utf-8")
    return directory


def suite(directory: Path, gain: float, seed: int, size: int = 120, entries=None, **header) -> Path:
    """All twelve benchmarks; the same items are hard for every model."""
    benchmarks = {}
    for place, benchmark in enumerate(ALL):
        family = "humaneval" if benchmark.kind == "code" else benchmark.name
        hard = np.random.default_rng([place if benchmark.kind != "code" else 99, 0])
        z = hard.normal(size=size) + gain
        z = z + 0.5 * np.random.default_rng([seed, place]).normal(size=size)
        smooth = benchmark.name in (
            "alpaca_eval",
            "truthfulqa",
            "drop",
            "humaneval",
            "humanevalplus",
        )
        scores = 1 / (1 + np.exp(-2 * z)) if smooth else (z > 0).astype(float)
        columns = {"id": [f"{family}/{i}" for i in range(size)]}
        if benchmark.aggregation == "macro":
            columns["stratum"] = [f"s{i % 6}" for i in range(size)]
        if benchmark.name == "drop":
            columns["cluster"] = [f"passage {i // 3}" for i in range(size)]
        if benchmark.name == "alpaca_eval":
            columns["cluster"] = [f"source {i % 5}" for i in range(size)]
        benchmarks[benchmark.name] = items(scores, **columns)
    return write(directory, benchmarks, entries, **header)


def gsm8k(directory: Path, scores, entries=None, **header) -> Path:
    return write(directory, {"gsm8k": items(scores)}, {"gsm8k": entries or {}}, **header)


def spec(a, b, also_a=(), **options):
    also_a = tuple(map(str, also_a))
    return CompareSpec(a=str(a), b=str(b), also_a=also_a, draws=FAST, **options)


def compared(a, b, **options):
    return compare(spec(a, b, **options))


def run(capsys, a, b, plot=None, **options) -> str:
    """What is printed, in one line: a terminal breaks lines where it likes."""
    run_compare(spec(a, b, **options), plot=plot)
    return " ".join(capsys.readouterr().out.split())


def by_id(directory, name):
    rows = pq.read_table(directory / "items" / f"{name}.parquet").to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def alpaca(directory, seed, n=150, missing=(), entries=None, score=None):
    rng = np.random.default_rng(seed)
    rows = items(
        rng.random(n),
        cluster=[f"source {i % 3}" for i in range(n)],
        output=["o" * int(k) for k in rng.integers(100, 3_000, n)],
        gold=["g" * int(k) for k in np.random.default_rng(0).integers(100, 3_000, n)],
    )
    rows = [row for i, row in enumerate(rows) if i not in missing]
    judged = ScoredPairs.of(*([row[k] for row in rows] for k in ("score", "output", "gold")))
    rate = pseudo_scores(judged).mean() if score is None else score
    changed = {"score": rate, "metric": "length-controlled, minimal", "n": len(rows)}
    changed |= {"alpaca_eval": {"comparisons": {"faults": {"no logprobs": len(missing)}}}}
    return write(directory, {"alpaca_eval": rows}, {"alpaca_eval": changed | (entries or {})}), rate


ONES = [1.0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
ZEROS = [0.0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
