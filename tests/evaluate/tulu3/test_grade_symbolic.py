"""Protects the process that compares LaTeX with sympy: its verdicts, its limits, its end.

Whatever a comparison does (hang, fill the memory, die), the next one must get its own answer, and
no process may be left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.math import symbolic

pytest.importorskip("sympy")
pytest.importorskip("antlr4")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture
def limits(monkeypatch):
    """`limits(SECONDS=1)` for a worker of this test; the usual one is back afterwards."""

    def change(**values):
        symbolic._close()
        for name, value in values.items():
            monkeypatch.setattr(symbolic, name, value)

    yield change
    symbolic._close()


def worker() -> int:
    return symbolic._worker._process.pid


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie does not run


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 60
    while runs(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("2x", "x+x", True),
        (r"\frac{1}{2}", "0.5", True),
        ("2x", "3x", False),
        ("4, because", "4", True),  # as published: it reads as far as it understands
        ("(1,2)", "(1,2)", False),  # does not parse
        ("x=4", "x=4", False),  # equations are not subtracted
        ("", "", False),
        ("\ud800\x00\n", "4", False),
        ("\\", "4", False),
    ],
)
def test_verdicts(a, b, same):
    assert symbolic.equal(a, b) is same
    assert symbolic.equal(b, a) is same


@pytest.mark.slow
def test_a_comparison_without_end_is_unequal_and_the_next_one_is_not_harmed(limits):
    limits(SECONDS=1.0)
    assert symbolic.equal("2x", "x+x")
    first = worker()
    began = time.monotonic()
    assert not symbolic.equal(ENDLESS, "4")
    assert time.monotonic() - began > 0.9
    assert symbolic.equal("2x", "x+x")
    assert worker() != first
    wait_until_gone(first)


@pytest.mark.slow
def test_the_time_limit_is_for_comparisons_not_for_waiting(limits):
    limits(SECONDS=1.0)
    assert symbolic.equal("2x", "x+x")
    first = worker()
    time.sleep(1.5)
    assert symbolic.equal("2x", "x+x")
    assert worker() == first


@pytest.mark.slow
def test_too_much_memory_is_unequal(limits):
    """2^(8e9) has 1 GB, in a process that may have 0.5: it raises, and the process goes on."""
    limits(SECONDS=60.0, MEMORY=512 << 20)
    assert symbolic.equal("2x", "x+x")
    first = worker()
    allowed = Path(f"/proc/{first}/limits").read_text()
    assert re.search(rf"Max address space +{512 << 20} +{512 << 20} +bytes", allowed)
    assert not symbolic.equal("2^{8000000000}", "4")
    assert symbolic.equal("2x", "x+x")
    assert worker() == first


def test_a_worker_that_was_killed_is_started_again():
    assert symbolic.equal("2x", "x+x")
    os.kill(worker(), signal.SIGKILL)
    wait_until_gone(worker())
    assert symbolic.equal("2x", "x+x")


def test_threads_get_their_own_answers():
    """lm_eval's check calls everything unequal in a thread that is not the main one."""
    pairs = [(f"{n}x", f"x+{n - 1}x" if n % 3 else f"{n + 1}x", bool(n % 3)) for n in range(2, 42)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: symbolic.equal(*pair[:2]), pairs))
    assert found == [same for *_, same in pairs]


def test_an_interrupted_comparison_does_not_leave_its_answer_to_the_next(limits, monkeypatch):
    """Ctrl-C while waiting: the late "true" must not be read as the answer to 2x = 3x."""
    limits(SECONDS=20.0)
    assert symbolic.equal("2x", "x+x")
    real = symbolic._Worker._read

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(symbolic._Worker, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        symbolic.equal("2x", "x+x")
    monkeypatch.setattr(symbolic._Worker, "_read", real)
    assert not symbolic.equal("2x", "3x")


def test_a_fork_has_a_worker_of_its_own():
    """Also where another thread of the parent is in the middle of a comparison."""
    assert symbolic.equal("2x", "x+x")
    theirs = worker()
    with symbolic._lock:
        child = os.fork()
        if child == 0:
            fine = symbolic.equal("2x", "x+x") and worker() != theirs
            symbolic._close()
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert symbolic.equal("3x", "x+2x")
    assert worker() == theirs


PARENT = """
import sys, threading, time
from deltalearn.evaluate.tulu3.math import symbolic
symbolic.SECONDS = 5.0
assert symbolic.equal("2x", "x+x")
print(symbolic._worker._process.pid, flush=True)
if sys.argv[1] != "ends":
    symbolic.equal(sys.argv[1], "4")
    time.sleep(60)
"""


def test_ctrl_c_does_not_reach_the_worker():
    """The terminal sends it to the whole process group: the worker is in another one."""
    assert symbolic.equal("2x", "x+x")
    assert os.getpgid(worker()) != os.getpgrp()


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["ends", "4", ENDLESS])
def test_no_worker_is_left_behind(doing):
    """The parent ends, or is killed while the worker is idle or in a comparison without end."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, doing], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        if doing != "ends":
            time.sleep(0.5)
            assert runs(pid)
            parent.kill()
    wait_until_gone(pid)


@pytest.mark.parametrize(
    "script, why",
    [
        ('print(\'{"missing": "No module named sympy"}\')', "No module named sympy"),
        ("raise SystemExit(3)", "the process did not start"),
    ],
)
def test_without_sympy_it_says_what_to_install(script, why, limits, tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(script)
    limits(WORKER=path)
    with pytest.raises(UserError, match=rf"{why}.*pip install -e '\.\[evaluate\]'"):
        symbolic.equal("2x", "x+x")


def test_the_worker_reports_what_is_missing():
    """Run with a python that finds no packages at all."""
    done = subprocess.run(
        [sys.executable, "-S", "-P", str(symbolic.WORKER), "5", str(2 << 30)],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == '{"missing": "No module named \'sympy\'"}\n'


def test_too_long_is_unequal_without_being_asked(monkeypatch):
    monkeypatch.setattr(symbolic, "_running", lambda: pytest.fail("sympy was asked"))
    assert not symbolic.equal("1" * (symbolic.LENGTH + 1), "1")
