"""Whether two LaTeX strings mean the same, decided by sympy in a process that can be killed.

sympy parses and computes whatever a model wrote. `100000000!` is one call into C where gmpy2 is
installed, and no signal handler of Python interrupts it; in a thread there are no handlers at all
(lm_eval's `is_equiv` then calls everything unequal). So sympy lives in a child with limits.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from deltalearn.errors import UserError

WORKER = Path(__file__).with_name("symbolic_worker.py")
SECONDS = 5.0  # of processor time; the published scorer has 5 s of wall clock. More: not equal
MEMORY = 2 << 30  # bytes of address space
LENGTH = 5_000  # characters; longer strings are not equal to anything


def equal(a: str, b: str) -> bool:
    """Compare by sympy: its LaTeX parser reads `a` and `b` and their difference simplifies to zero.

    False for what does not parse, takes longer than SECONDS, needs more than MEMORY or is longer
    than LENGTH. As published the parser stops where it understands no more: "4, because" is 4.
    UserError if sympy or its parser is missing. Any thread may call it; one at a time is served.
    """
    if max(len(a), len(b)) > LENGTH:
        return False
    with _lock:
        return _running().compare(a, b)


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is ours
        )
        first = self._read()
        if not isinstance(first, dict) or "ready" not in first:
            self.close()
            why = first["missing"] if isinstance(first, dict) else "the process did not start"
            raise UserError(
                f"MATH is graded with sympy, which does not work here ({why}); "
                "pip install -e '.[evaluate]'"
            )

    def compare(self, a: str, b: str) -> bool:
        """False also if the process dies of it; it is then started again at the next call."""
        answer = None
        try:
            with suppress(BrokenPipeError):
                print(json.dumps([a, b]), file=self._process.stdin, flush=True)
                answer = self._read()
        finally:  # dead, or interrupted here: a late answer must not be taken for the next one's
            if answer is None:
                self.close()
        return answer is True

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> object:
        """The next message; None if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None


_lock = threading.Lock()
_worker: _Worker | None = None


def _running() -> _Worker:
    """The worker of this process, started if there is none or it died."""
    global _worker
    if _worker is None or _worker._process.poll() is not None:
        _worker = _Worker()
    return _worker


def _forget() -> None:
    """A fork has its parent's pipes, which it must not use, and perhaps a lock that is taken."""
    global _lock, _worker
    _lock, _worker = threading.Lock(), None


@atexit.register
def _close() -> None:
    if _worker is not None:
        _worker.close()


os.register_at_fork(after_in_child=_forget)
