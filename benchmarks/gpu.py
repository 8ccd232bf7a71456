"""A day on a GPU in one command: stages in order of value, each under a time limit of its own.

python benchmarks/gpu.py [--out DIR] [--seconds 480] [--stages lora lab ...] [--shape 8b] [--tiny]

Made for machines that can be had for minutes: every stage appends its findings to
DIR/results.jsonl as soon as it has them, so that what was measured survives a cut; DIR/logs.txt has
the end of what each stage said, with the place where it was when its time was up. `gpu_stages.py`
has the stages and `gpu_pack.py` packs what must travel to a machine without a network. --tiny runs
all of them on a CPU in minutes, to show that they run.

The last line is JSON: machine, versions, and what became of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, versions
from gpu_stages import STAGES, answer

LEAST = 15  # seconds left under which no stage is started
TAIL = 6000  # characters kept of what a stage said


def main() -> None:
    options = parse()
    if options.job:
        answer(options.job)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    became: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=options.work or roomy()) as work:
        for name in options.stages:
            limit = STAGES[name].tiny_seconds if options.tiny else STAGES[name].seconds
            left = ends - time.monotonic()
            if left < LEAST:
                became[name] = "no time left"
                continue
            became[name] = run_stage(name, min(limit, left), Path(work), options)
            print(f"{name}: {became[name]}", flush=True)
    about = {"machine": machine(), "versions": versions(), "tiny": options.tiny}
    print(json.dumps({**about, "stages": became}))
    if set(became.values()) != {"done"}:
        sys.exit(1)


def run_stage(name: str, limit: float, work: Path, options: argparse.Namespace) -> str:
    """Run one stage in a process of its own; prints its findings, returns what became of it."""
    lines, log = options.out / "results.jsonl", work / f"{name}.log"
    before = lines.stat().st_size if lines.exists() else 0
    job = {"stage": name, "lines": str(lines), "work": str(work), "shape": options.shape,
           "tiny": options.tiny, "until": time.time() + limit}  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1",
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    began = time.monotonic()
    with log.open("w") as said:
        child = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = child.wait(limit)
            became = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            became = f"cut after {limit:.0f} s"
        finally:
            end(child)
    found = lines.read_bytes()[before:].decode() if lines.exists() else ""
    print(found, end="")
    errors = sum("error" in json.loads(line) for line in found.splitlines())
    if became == "done" and errors:
        became = f"done, with {errors} errors"
    with (options.out / "logs.txt").open("a") as logs:
        seconds = time.monotonic() - began
        logs.write(f"===== {name}: {became} ({seconds:.0f} s)\n{log.read_text()[-TAIL:]}\n")
    return became


def end(child: subprocess.Popen) -> None:
    """End a stage and all that it started; SIGABRT first, on which Python says where it was."""
    for number in (signal.SIGABRT, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(3)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def roomy() -> str | None:
    """Memory, where it has room for a model of 16 GB: a disk may take a minute for it."""
    shared = Path("/dev/shm")  # noqa: S108 (a folder of its own is made in it)
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 40e9 else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-day"), help="default: gpu-day")
    parser.add_argument("--seconds", type=float, default=480, help="for all stages together")
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE",
        help=", ".join(f"{name} ({stage.seconds} s)" for name, stage in STAGES.items()),
    )  # fmt: skip
    parser.add_argument("--shape", choices=["8b", "3b", "1b"], default="8b", help="of the model")
    parser.add_argument("--work", help="where models go, 16 GB for 8b; default: memory, else disk")
    parser.add_argument("--tiny", action="store_true", help="on a CPU: only shows that it runs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.tiny or options.job):
        from tune_vs_trl_gpu import require_gpu

        require_gpu()
    return options


if __name__ == "__main__":
    main()
