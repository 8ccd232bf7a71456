"""The response store with a million rows: written, read meanwhile, read, paired, checked, exported.

python benchmarks/response_store.py [--rows N] [--batch N] [--folder PATH]

Two models answer the same prompts, with some 500 characters and 120 token ids an answer. The rows
are added in batches of what a served engine commits at once, each durable before the next, while
another process reads: every read must see whole batches, and rows whose texts belong together.
Then, each in a process of its own: all rows are read as the stage counts them, paired into Parquet
as `deltalearn pairs` does it, checked, and exported to Parquet. Every number of rows must come out
as it went in, or the benchmark fails.

All of it is done with a quarter of the rows and with all of them: memory is constant if both take
the same. The last line is JSON: rows a second and peak memory by phase, `memory_ratio` of the
peaks (all rows against a quarter), and the reads during writing with their latencies.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from common import answer_job, in_child, machine, peak_mb

MODELS = ("strong", "weak")
PHASES = ("write", "read", "pairs", "check", "export")
SHARE = 4  # the smaller store has so many times fewer rows
CONSTANT = 1.2  # peaks that differ by less are the same
POOL = 1_000_000  # characters and ids from which answers are cut
CHARACTERS, IDS = (250, 750), (60, 180)  # of an answer
TRUNCATED = 50  # one prompt in so many is answered up to the limit, by both models
PAUSE = 0.01  # seconds between two reads


# The rows ---------------------------------------------------------------------------------------


class Prompts:
    """So many prompts, made anew at each reading."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        from deltalearn.records import Prompt

        for number in range(self.count):
            turn = {"role": "user", "content": f"Prompt {number}: {'what is there to say? ' * 8}"}
            yield Prompt(str(number), (turn,))


def requests(job: dict[str, Any], model: str) -> Any:
    """What one model is asked; can be read again."""
    from deltalearn.records import Sampling
    from deltalearn.responses import RequestPlan, Settings

    prompts = Prompts(job["rows"] // len(MODELS))
    return RequestPlan(model, prompts, Settings(Sampling(0.7, 0.95, 512)))


class Answers:
    """Answers cut from a long random text, with the number of their prompt in front."""

    def __init__(self) -> None:
        self._rng = random.Random(0)
        words = ["".join(self._rng.choices("etaoinshrdlu", k=k % 9 + 2)) for k in range(5000)]
        self._text = " ".join(self._rng.choices(words, k=POOL // 6))
        self._ids = self._rng.choices(range(128_000), k=POOL)

    def to(self, request: Any) -> Any:
        """The answer to a request."""
        from deltalearn.records import Response

        number, draw = int(request.prompt.id), self._rng.randrange
        at, size, ids = draw(POOL // 2), draw(*CHARACTERS), draw(*IDS)
        text = f"{number} {request.model}: {self._text[at : at + size]}"
        reason = "length" if number % TRUNCATED == 0 else "stop"
        tokens = tuple(self._ids[at : at + ids])
        return Response(request.key, text, tokens, reason, 60, seconds=1.5, seed=number)


# The phases, each in its own process ------------------------------------------------------------


def write(job: dict[str, Any]) -> dict[str, Any]:
    """Add all rows, one model after the other; clocks run inside `add` alone."""
    from deltalearn.responses import ResponseStore

    answers, times, path = Answers(), [], Path(job["store"])
    with ResponseStore(path) as store:
        for model in MODELS:
            for batch in batches(requests(job, model), job["batch"]):
                group = [(request, answers.to(request)) for request in batch]
                began = time.perf_counter()
                store.add(group, engine="benchmark")
                times.append(time.perf_counter() - began)
                path.with_suffix(".begun").touch()
        rows = store.count()
    path.with_suffix(".written").touch()
    return measured(rows, sum(times), slowest_s=round(max(times), 3))


def batches(source: Any, size: int) -> Iterator[list[Any]]:
    rest = iter(source)
    while batch := list(islice(rest, size)):
        yield batch


def read_meanwhile(job: dict[str, Any]) -> dict[str, Any]:
    """Read until all is written: how many rows there are, and some of them at random."""
    from deltalearn.responses import ResponseStore

    path, rng, times, wrong = Path(job["store"]), random.Random(1), [], 0
    while not path.with_suffix(".begun").exists():
        time.sleep(PAUSE)
    with ResponseStore(path, existing=True) as store:
        while not path.with_suffix(".written").exists():
            began = time.perf_counter()
            wrong += not consistent(store.db, job, rng)
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE)
    times.sort()
    return {
        "reads": len(times),
        "wrong": wrong,
        "median_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1000, 2),
        "slowest_ms": round(times[-1] * 1000, 2),
    }


def consistent(db: Any, job: dict[str, Any], rng: random.Random) -> bool:
    """One transaction: whole batches, the same at its end as at its start, texts that fit."""
    db.execute("BEGIN")
    try:
        last = db.execute("SELECT max(id) FROM responses").fetchone()[0]
        ids = [last, *(rng.randint(1, last) for _ in range(20))]
        found = db.execute(
            "SELECT p.messages, r.text, m.name FROM responses r JOIN prompts p ON p.id = r.prompt "
            "JOIN models m ON m.id = r.model WHERE r.id IN (SELECT value FROM json_each(?))",
            [json.dumps(ids)],
        ).fetchall()
        again = db.execute("SELECT max(id) FROM responses").fetchone()[0]
    finally:
        db.rollback()
    half = job["rows"] // len(MODELS)
    whole = last % half % job["batch"] == 0  # batches begin anew with the second model
    fit = [text.startswith(f"{number_of(turns)} {name}: ") for turns, text, name in found]
    return whole and last == again and len(found) == len(set(ids)) and all(fit)


def number_of(messages: str) -> str:
    return json.loads(messages)[0]["content"].split()[1].rstrip(":")


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Look every request up, as the stage does to count all answers."""
    from deltalearn.generate.stage import WINDOW
    from deltalearn.responses import ResponseStore

    rows, seconds = 0, 0.0
    with ResponseStore(Path(job["store"]), existing=True) as store:
        for model in MODELS:
            for batch in batches(requests(job, model), WINDOW):
                began = time.perf_counter()
                rows += len(store.get(request.key for request in batch))
                seconds += time.perf_counter() - began
    return measured(rows, seconds)


def pairs(job: dict[str, Any]) -> dict[str, Any]:
    """Both models side by side, into Parquet."""
    import pyarrow.parquet as pq

    from deltalearn.pipeline.pairs import write_pairs_of_store

    out, prompts = Path(job["out"]) / "pairs.parquet", job["rows"] // len(MODELS)
    began = time.perf_counter()
    write_pairs_of_store(Path(job["store"]), *MODELS, out)
    seconds = time.perf_counter() - began
    made, expected = pq.read_metadata(out).num_rows, prompts - len(range(0, prompts, TRUNCATED))
    return measured(job["rows"] if made == expected else -made, seconds)


def check(job: dict[str, Any]) -> dict[str, Any]:
    """SQLite's own check of its pages, and all keys made again."""
    from deltalearn.responses import ResponseStore
    from deltalearn.responses.maintenance import check

    with ResponseStore(Path(job["store"]), existing=True) as store:
        began = time.perf_counter()
        found = check(store)
        seconds = time.perf_counter() - began
    return measured(-found.rows if found.problems else found.rows, seconds)


def export(job: dict[str, Any]) -> dict[str, Any]:
    """All rows into Parquet."""
    from deltalearn.responses import ResponseStore
    from deltalearn.responses.export import export

    with ResponseStore(Path(job["store"]), existing=True) as store:
        began = time.perf_counter()
        rows = export(store, Path(job["out"]) / "responses.parquet")
        seconds = time.perf_counter() - began
    return measured(rows, seconds)


def measured(rows: int, seconds: float, **more: Any) -> dict[str, Any]:
    """What a phase leaves; `rows` tells the parent whether it did its work."""
    rate = round(rows / seconds)
    return {"rows": rows, "rows_per_s": rate, "peak_mb": round(peak_mb(), 1), **more}


SIDES = {
    "write": write, "reader": read_meanwhile, "read": read, "pairs": pairs, "check": check,
    "export": export,
}  # fmt: skip


# The whole --------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=100, help="rows of one commit")
    parser.add_argument("--folder", help="where the stores go (some 2 GB); default: temporary")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.job:
        answer_job(options.job, SIDES)
        return
    about = {**machine(), "load_before": round(os.getloadavg()[0], 2)}
    print(f"machine: {about}", flush=True)
    step = SHARE * len(MODELS)
    rows = max(1, options.rows // step) * step  # a quarter must be even too
    found = {count: all_phases(count, options) for count in (rows // SHARE, rows)}
    result = summary(found)
    print(json.dumps({**result, "batch": options.batch, "machine": about}))


def all_phases(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """All phases on one store of so many rows."""
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        directory = Path(temporary)
        job = {"store": str(directory / "responses.sqlite"), "rows": rows, "batch": options.batch}

        def run(side: str) -> dict[str, Any]:
            (directory / side / "out").mkdir(parents=True)
            return in_child(__file__, {**job, "side": side}, directory / side, threads=1)

        with ThreadPoolExecutor() as both:
            reader, writer = both.submit(run, "reader"), both.submit(run, "write")
            found = {"write": writer.result(), "reader": reader.result()}
        size = Path(job["store"]).stat().st_size / 1e6
        found |= {side: run(side) for side in PHASES if side != "write"}
    show(rows, found)
    return {**found, "store_mb": round(size)}


def show(rows: int, found: dict[str, Any]) -> None:
    """Print what was found; end the benchmark if any of it is wrong."""
    for phase in PHASES:
        rate, peak = found[phase]["rows_per_s"], found[phase]["peak_mb"]
        print(f"{rows:>10,} rows {phase:>7}: {rate:>8,} rows/s, peak {peak:.0f} MB", flush=True)
    print(f"{'':>16}{'reader':>7}: {found['reader']}", flush=True)
    wrong = [phase for phase in PHASES if found[phase]["rows"] != rows]
    if wrong or found["reader"]["wrong"]:
        sys.exit(f"rows are missing, torn or wrong: {', '.join(wrong) or 'reader'}")


def summary(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Numbers by phase and number of rows."""

    def table(what: str) -> dict[str, dict[int, Any]]:
        return {phase: {n: ran[phase][what] for n, ran in found.items()} for phase in PHASES}

    small, large = sorted(found)
    peaks = table("peak_mb")
    ratios = {phase: round(peak[large] / peak[small], 3) for phase, peak in peaks.items()}
    return {
        "rows_per_s": table("rows_per_s"),
        "peak_mb": peaks,
        "memory_ratio": ratios,
        "constant_memory": max(ratios.values()) <= CONSTANT,
        "slowest_commit_s": {n: ran["write"]["slowest_s"] for n, ran in found.items()},
        "reader": {n: ran["reader"] for n, ran in found.items()},
        "store_mb": {n: ran["store_mb"] for n, ran in found.items()},
    }


if __name__ == "__main__":
    main()
