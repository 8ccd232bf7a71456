"""`deltalearn run` in processes that a test may stop and kill, with a launcher or without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0"]  # fmt: skip
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--cpu",
              "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


def start(launcher: list[str], *arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, *(["-m", *launcher] if launcher else []), "-m", "deltalearn", "run"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        cwd=cwd,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def kill_all(process: subprocess.Popen) -> None:
    """Kill a launcher and those it started, which are in sessions of their own."""
    pids = [process.pid]
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += map(int, file.read_text().split())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(map(at_work, pids)):  # what they still write must not be taken for others' work
        time.sleep(0.01)


def at_work(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False


def wait_for(happened: Callable[[], object], process: subprocess.Popen) -> None:
    while not happened():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
