"""Time and memory of the theory's simulator: one pair a step, 100 steps, float64.

python benchmarks/theory_simulation.py [--quick]

The last line is JSON: `seconds` and `peak_rss_gb` of 10,000 trials at dimension 1,000, and the
whole table. Each row runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

import numpy as np
import scipy

from deltalearn.theory.geometry import Geometry
from deltalearn.theory.simulate import Plan, simulate

STEPS = 100
MAIN = (1_000, 10_000)  # dimension, trials
ROWS = (
    (100, 10_000),
    (1_000, 100),
    (1_000, 1_000),
    MAIN,
    (10_000, 1_000),
    (100_000, 100),
)
LIMITS = {"seconds": 60.0, "peak_rss_gb": 2.0}


def measure(dimension: int, trials: int) -> dict[str, float]:
    """Seconds and peak memory of one simulation in this process."""
    plan = Plan(dimension=dimension, trials=trials, steps=STEPS, rate=0.01)
    began = time.perf_counter()
    result = simulate(Geometry(0.8, 0.6, 0.4), plan)
    seconds = time.perf_counter() - began
    scale = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes there, KiB here
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return {
        "dimension": dimension,
        "trials": trials,
        "seconds": round(seconds, 2),
        "peak_rss_gb": round(peak, 3),
        "cosine": round(float(result.cosine.mean[-1]), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the main row")
    parser.add_argument("--row", nargs=2, type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row:
        print(json.dumps(measure(*chosen.row)))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"machine: {platform.machine()}, {platform.system()}, {cores} cores")
    print(f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}")
    print(f"{STEPS} steps of one pair, preference loss, float64; own process for each row")
    print(f"{'dimension':>10} {'trials':>8} {'seconds':>9} {'peak GB':>8} {'cosine':>9}")
    table = []
    for row in [MAIN] if chosen.quick else ROWS:
        command = [sys.executable, __file__, "--row", *map(str, row)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        table.append(json.loads(answer))
        print("{dimension:10,} {trials:8,} {seconds:9.2f} {peak_rss_gb:8.3f} {cosine:9.5f}".format(
            **table[-1]), flush=True)  # fmt: skip
    best = table[[(r["dimension"], r["trials"]) for r in table].index(MAIN)]
    within = all(best[name] < limit for name, limit in LIMITS.items())
    print(json.dumps({**{k: best[k] for k in LIMITS}, "within_limits": within, "cores": cores,
                      "table": table}))  # fmt: skip
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
