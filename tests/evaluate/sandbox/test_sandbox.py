"""Protects what the sandbox says of a program, its limits, and how it refuses to work.

That nothing gets out of it is tested in test_sandbox_attacks.py.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.sandboxed import run, sandbox

from deltalearn.errors import UserError
from deltalearn.evaluate.sandbox import Limits, Outcome, Sandbox, Status, seccomp
from deltalearn.evaluate.sandbox.outcome import DETAIL, printable
from deltalearn.evaluate.sandbox.run import judge
from deltalearn.evaluate.sandbox.watch import Bounds, Ended, Reason

# -- outcomes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("", Status.PASSED, ""),
        ("assert 1 + 1 == 2", Status.PASSED, ""),
        ("print('a' * 100_000)", Status.PASSED, ""),
        ("import sys; print('Traceback', file=sys.stderr)", Status.PASSED, ""),
        ("assert 1 + 1 == 3", Status.FAILED, "AssertionError"),
        ("assert False, 'no: 3'", Status.FAILED, "AssertionError: no: 3"),
        ("raise ValueError('two\\nlines')", Status.FAILED, "ValueError: two\\nlines"),
        ("def f(:", Status.FAILED, "SyntaxError: invalid syntax"),
        ("  x = 1", Status.FAILED, "IndentationError: unexpected indent"),
        ("f()", Status.FAILED, "NameError: name 'f' is not defined"),
        ("def f(): f()\nf()", Status.FAILED, "RecursionError: maximum recursion depth exceeded"),
        ("input()", Status.FAILED, "EOFError: EOF when reading a line"),
        ("x = '\ud800'", Status.FAILED, "UnicodeEncodeError: 'utf-8' codec can't encode"),
        (
            "import sys; sys.exit(-1)",
            Status.FAILED,
            "ended before its last line, with exit code 25",
        ),
        ("import torch", Status.FAILED, "ModuleNotFoundError: No module named 'torch'"),
        ("import deltalearn", Status.FAILED, "ModuleNotFoundError"),
        ("[0] * 10**10", Status.MEMORY, "MemoryError (limit: 2,048 MiB)"),
        ("import numpy; numpy.ones(10**10)", Status.MEMORY, "numpy._core._exceptions._ArrayMemo"),
        ("import ctypes; ctypes.string_at(0)", Status.CRASHED, "died of SIGSEGV"),
        ("import os; os.abort()", Status.CRASHED, "died of SIG"),
        ("import sys; sys.exit(0)", Status.FAILED, "ended before its last line, with exit code 0"),
        ("import os; os._exit(7)", Status.FAILED, "ended before its last line, with exit code 7"),
        ("while True: print('x' * 1000)", Status.OUTPUT, "printed more than 8 MiB"),
        ("while True: pass", Status.TIMED_OUT, "used 1 s of processor time"),
    ],
    ids=lambda value: re.sub(r"[^ -~]", "?", value)[:40] if isinstance(value, str) else "",
)
def test_one_word_and_one_line_for_every_end(program, status, detail):
    found = run(program, timeout=1)
    assert found.status is status, found
    assert found.detail.startswith(detail) and bool(found.detail) == bool(detail)
    assert found.passed == (status is Status.PASSED)


def test_null_bytes_are_an_error_of_the_program():
    found = run("x = 1\0")
    assert found.status is Status.FAILED
    assert "source code string cannot contain null bytes" in found.detail


def test_python_is_as_a_program_expects():
    """Text as Python reads it; numpy; modules that look their own module up; a directory."""
    found = run(
        "# -*- coding: latin-1 -*-\r\n"  # for files; this is text
        "from __future__ import annotations\r\n"
        "import dataclasses, os, random, sys, typing, numpy as np\n"
        "assert 'ß' == '\\u00df' and len('\U0001f642') == 1\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: typing.ClassVar[int] = 0\n"
        "    y: int = 1\n"
        "assert typing.get_type_hints(Point)['y'] is int\n"
        "assert __name__ == 'program'\n"  # what is under `if __name__ == '__main__'` is not run
        "assert sys.argv == ['program.py']\n"
        "with open('note.txt', 'w') as file: file.write('ok')\n"
        "assert os.listdir() == ['note.txt'] and os.getcwd() == '/tmp'\n"
        "assert np.allclose(np.linalg.inv(np.eye(3)), np.eye(3))\n"
        "assert sys.getrecursionlimit() == 1000\n"
    )
    assert found == Outcome(Status.PASSED, "", found.cpu)


def test_programs_leave_nothing_to_the_next_one():
    programs = ["import os; assert not os.listdir(); open('left', 'w')"] * 3
    assert [o.detail for o in sandbox().run_programs(programs, workers=1)] == [""] * 3


def test_hashes_of_strings_are_the_same_in_every_run():
    program = "raise ValueError(hash('deltalearn'))"
    first, second = sandbox().run_programs([program] * 2)
    assert first.detail == second.detail


def test_outcomes_are_in_order_whatever_ends_first():
    naps = [0.3, 0.0, 0.2, 0.1] * 2
    programs = [f"import time; time.sleep({s}); raise ValueError({i})" for i, s in enumerate(naps)]
    found = sandbox().run_programs(programs, workers=4)
    assert [o.detail for o in found] == [f"ValueError: {i}" for i in range(8)]


def test_starting_is_cheap():
    found = sandbox().run_programs(["pass"] * 10)
    assert sorted(o.cpu for o in found)[5] < 0.15  # measured: 0.015


# -- limits --------------------------------------------------------------------------------------


def test_the_limit_is_processor_time_and_sleep_is_free():
    found = run("import time; time.sleep(1.5)", timeout=0.5)
    assert found.passed
    assert found.cpu < 0.5


def test_limits_of_time_may_be_fractions():
    found = run("while True: pass", timeout=0.3)
    assert found.status is Status.TIMED_OUT
    assert found.detail == "used 0.3 s of processor time"
    assert 0.3 < found.cpu < 1.5


def test_a_program_that_ends_late_between_two_looks_has_not_passed():
    bounds = Bounds(1.0, 9.0, Limits(), lambda: False)
    code = "import time\nwhile time.process_time() < 0.12: pass"
    found = run(code, timeout=0.1)
    assert found.status is Status.TIMED_OUT
    assert judge(Ended(Reason.CPU, 0, 1.01, b"+t", ""), b"+t", bounds).status is Status.TIMED_OUT


@pytest.mark.slow
def test_the_wall_clock_ends_what_sleeps():
    found = run("import time; time.sleep(60)", timeout=1, wall=2)
    assert found.status is Status.TIMED_OUT
    assert found.detail == "still ran after 2 s of wall clock"


def test_limits_of_memory_disk_files_and_output_can_be_set():
    small = {"memory": 256 << 20, "disk": 1 << 20, "files": 100, "output": 10_000}
    programs = [
        "x = bytearray(300 << 20)",
        "x = bytearray(100 << 20)",
        "print('x' * 11_000)",
        "print('x' * 9_000)",
        "import time\nfor i in range(200): open(str(i), 'w')\ntime.sleep(1)",
        "open('large', 'wb').write(bytes(2 << 20))",
    ]
    found = sandbox((), **small).run_programs(programs)
    assert [o.status for o in found] == [
        Status.MEMORY,
        Status.PASSED,
        Status.OUTPUT,
        Status.PASSED,
        Status.OUTPUT,
        Status.FAILED,
    ]
    assert found[4].detail == "made more than 100 files"
    assert "File too large" in found[5].detail


# -- what is said of a program -------------------------------------------------------------------

BOUNDS = Bounds(3.0, 17.0, Limits(), lambda: False)


@pytest.mark.parametrize(
    ("ended", "status", "detail"),
    [
        (Ended(Reason.ENDED, 0, 0.1, b"+token", ""), Status.PASSED, ""),
        (Ended(Reason.ENDED, 1, 0.1, b"+token", "E: x"), Status.PASSED, ""),  # at exit
        (Ended(Reason.ENDED, 0, 0.1, b"+", ""), Status.FAILED, "ended before its last line, wi"),
        (Ended(Reason.ENDED, 0, 0.1, b"+tokem", ""), Status.FAILED, "ended before its last line"),
        (Ended(Reason.ENDED, 0, 0.1, b"+token+", ""), Status.FAILED, "ended before its last li"),
        (Ended(Reason.ENDED, 0, 0.1, b"+", "passed\n"), Status.FAILED, "ended before its last"),
        (Ended(Reason.WALL, 137, 0.1, b"+token", ""), Status.TIMED_OUT, "still ran after 17 s"),
        (Ended(Reason.CPU, 137, 3.1, b"+token", ""), Status.TIMED_OUT, "used 3 s of processor"),
        (Ended(Reason.OUTPUT, 137, 0.1, b"+token", ""), Status.OUTPUT, "printed more than 8 MiB"),
        (Ended(Reason.FILES, 137, 0.1, b"+token", ""), Status.OUTPUT, "made more than 10,000"),
        (Ended(Reason.ENDED, 137, 0.1, b"+", ""), Status.MEMORY, "killed by the system"),
        (Ended(Reason.ENDED, 139, 0.1, b"+", "Traceback"), Status.CRASHED, "died of SIGSEGV"),
        (Ended(Reason.ENDED, 255, 0.1, b"+", ""), Status.FAILED, "ended before its last line"),
        (Ended(Reason.ENDED, 1, 0.1, b"+", "  File x\nKeyError: 1"), Status.FAILED, "KeyError: 1"),
        (Ended(Reason.ENDED, 1, 0.1, b"+", "said\nE: 1\n\n"), Status.FAILED, "E: 1"),
        (Ended(Reason.ENDED, 1, 0.1, b"+", "MemoryError"), Status.MEMORY, "MemoryError (limit"),
    ],
)
def test_verdict_by_hand(ended, status, detail):
    found = judge(ended, b"+token", BOUNDS)
    assert (found.status, found.cpu) == (status, ended.cpu)
    assert found.detail.startswith(detail) and bool(found.detail) == bool(detail)


def test_details_are_one_short_printable_line():
    hostile = "\x1b[2J\x1b]0;owned\x07\r\n\u202etxet\u2066\ud800\0\u2028" + "x" * 9999
    found = run(f"raise ValueError({hostile!r})")
    assert found.detail.startswith(r"ValueError: \x1b[2J\x1b]0;owned\x07")
    for text in (found.detail, printable(hostile), printable("\x1b" * 9999)):
        assert text.isprintable() and len(text) <= DETAIL
    assert printable("as it is, 100 %: ß 你好") == "as it is, 100 %: ß 你好"
    assert printable("abc\n", 3) == "ab…"


def test_output_that_is_no_text_does_not_matter():
    found = run("import os\nos.write(1, bytes(range(256)))\nos.write(2, bytes(range(256)))\n1 / 0")
    assert found.detail == "ZeroDivisionError: division by zero"


# -- the filter of system calls, run by hand ------------------------------------------------------


def ruling(program: bytes, architecture: int, number: int) -> int:
    """What the filter returns; a few lines that do what the kernel does with these four codes."""
    lines = list(struct.iter_unpack("=HBBI", program))
    data = {0: number, 4: architecture}
    at = value = 0
    while True:
        code, yes, no, k = lines[at]
        if code == 0x06:
            return k
        if code == 0x20:
            value = data[k]
        at += 1 + {0x20: 0, 0x15: yes if value == k else no, 0x25: yes if value > k else no}[code]


ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 + errno.EPERM, 0x50000 + errno.ENOSYS


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_filter_refuses_its_list_and_nothing_else(machine, column):
    program = seccomp.program(machine)
    architecture = seccomp.MACHINES[machine][1]
    refused = {pair[column] for pair in seccomp.REFUSED.values()} - {None}
    for number in range(seccomp.NEWEST + 1):
        expected = EPERM if number in refused else ALLOW
        assert ruling(program, architecture, number) == expected
    for number in (seccomp.NEWEST + 1, 0x40000000, 0x40000000 + 57, 0xFFFFFFFF):  # x32 too
        assert ruling(program, architecture, number) == ENOSYS
    for other in (0x40000003, 0):  # 32-bit calls have other numbers
        assert ruling(program, other, 1) == KILL


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's header is Linux's")
def test_numbers_are_those_of_the_headers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip(f"no {header} (package linux-libc-dev)")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    known = {name: pair[0] for name, pair in seccomp.REFUSED.items() if name in numbers}
    assert len(known) > 40
    assert {name: int(numbers[name]) for name in known} == known


def test_other_machines_are_refused():
    with pytest.raises(UserError, match=r"riscv64, only for x86_64 and aarch64"):
        seccomp.program("riscv64")


# -- refusals -------------------------------------------------------------------------------------


def test_nothing_runs_without_consent(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started something"))
    for unsafe in (False, True):
        with pytest.raises(UserError, match="--allow-code"):
            Sandbox(allow=False, unsafe=unsafe)


def test_without_bubblewrap_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install bubblewrap"):
        Sandbox(allow=True)


def fake_bwrap(folder: Path, script: str, monkeypatch) -> None:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_where_namespaces_are_forbidden_nothing_runs(monkeypatch, tmp_path):
    said = "bwrap: No permissions to create new namespace"
    fake_bwrap(tmp_path, f"echo '{said}' >&2; exit 1", monkeypatch)
    with pytest.raises(UserError) as error:
        Sandbox(allow=True)
    text = str(error.value)
    assert said in text
    assert "user namespaces" in text and "--security-opt" in text and "--unsafe" in text


def test_a_sandbox_that_fails_once_is_tried_again(monkeypatch, tmp_path):
    sandbox()
    real = subprocess.check_output(["which", "bwrap"], text=True).strip()
    flag = tmp_path / "fail"
    fake_bwrap(tmp_path, f'test -e {flag} && rm {flag} && exit 1\nexec {real} "$@"', monkeypatch)
    made = Sandbox(allow=True, packages=())
    flag.touch()
    # bwrap itself starts with an empty environment: the script finds `rm` by sh's own path
    assert [o.passed for o in made.run_programs(["pass", "1 / 0"], workers=1)] == [True, False]
    assert not flag.exists()


def test_a_sandbox_that_goes_on_failing_is_an_error_not_a_verdict(monkeypatch, tmp_path):
    sandbox()
    real = subprocess.check_output(["which", "bwrap"], text=True).strip()
    flag = tmp_path / "fail"
    script = f"test -e {flag} && echo 'bwrap: out of namespaces' >&2 && exit 1\nexec {real} \"$@\""
    fake_bwrap(tmp_path, script, monkeypatch)
    made = Sandbox(allow=True, packages=())
    flag.touch()
    with pytest.raises(UserError, match="out of namespaces"):
        made.run_programs(["pass"] * 5)


def test_packages_must_be_installed():
    with pytest.raises(UserError, match="pip install no-such-package"):
        Sandbox(allow=True, packages=("no-such-package",))


# -- without isolation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsafe() -> Sandbox:
    return Sandbox(allow=True, unsafe=True)


def test_unsafe_is_loud(capsys):
    Sandbox(allow=True, unsafe=True, packages=())
    warning = capsys.readouterr().err.replace("\n", " ")
    assert "WITHOUT ISOLATION" in warning and "delete your files" in warning


@pytest.mark.slow
def test_unsafe_gives_the_same_verdicts(unsafe, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # needs no bwrap
    programs = {
        "import numpy": Status.PASSED,
        "1 / 0": Status.FAILED,
        "import os; os._exit(0)": Status.FAILED,
        "while True: pass": Status.TIMED_OUT,
        "[0] * 10**10": Status.MEMORY,
        "while True: print('x' * 1000)": Status.OUTPUT,
        "import ctypes; ctypes.string_at(0)": Status.CRASHED,
    }
    found = unsafe.run_programs(programs, timeout=1)
    assert [o.status for o in found] == list(programs.values())


def test_unsafe_still_cleans_up(unsafe, monkeypatch):
    """An empty environment, a directory that is gone at the end, and a process group that is."""
    monkeypatch.setenv("SECRET", "x")
    program = "import os\nassert 'SECRET' not in os.environ\nraise ValueError(os.getcwd())"
    (found,) = unsafe.run_programs([program])
    directory = Path(found.detail.removeprefix("ValueError: "))
    assert directory.name.startswith("unsafe-") and not directory.exists()
    child = "import os, time\npid = os.fork()\nif not pid: time.sleep(600)\nraise ValueError(pid)"
    (found,) = unsafe.run_programs([child])
    with pytest.raises(ProcessLookupError):
        _wait_for_the_end_of(int(found.detail.removeprefix("ValueError: ")))


def _wait_for_the_end_of(pid: int) -> None:
    for _ in range(100):
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError  # dead; nobody has asked yet
        time.sleep(0.05)


# -- interruptions --------------------------------------------------------------------------------

HOST = """
import sys
from deltalearn.evaluate.sandbox import Sandbox
sandbox = Sandbox(allow=True, packages=())
print("ready", flush=True)
sandbox.run_programs(["import time; time.sleep(50)"] * 9, timeout=50, workers=3)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_run(number):
    """Ctrl-C ends a run at once; even a killed run takes its programs with it."""
    sandbox()
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with host:
        assert host.stdout.readline() == b"ready\n"
        started = _eventually(lambda: _below(host.pid), lambda found: len(found) >= 6)
        assert len(started) >= 6  # three times bwrap, three programs
        host.send_signal(number)
        host.wait(timeout=60)
    left = _eventually(lambda: [p for p in started if _alive(p)], lambda found: not found)
    assert left == []


def _eventually(look, enough, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not enough(found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = [pid]
    for known in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_descriptors_are_left_open():
    sandbox()
    before = len(os.listdir("/proc/self/fd"))
    sandbox().run_programs(["pass", "1 / 0", "while True: print('x' * 9999)"] * 3)
    assert len(os.listdir("/proc/self/fd")) == before
