"""Watches a started program: what it prints, the clocks, its files, its end."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from deltalearn.evaluate.sandbox.outcome import Limits

READ = 1 << 16  # bytes at once
TAIL = 1 << 15  # bytes kept: the end of standard error, the beginning of the verdict
TICK = 0.05  # seconds between looks at clocks and files


Streams = dict[str, Any]  # descriptors of stdin, stdout and stderr, as Popen takes them


class Reason(Enum):
    """Why the watch ended; all but the first are a kill."""

    ENDED = auto()  # by itself, or the kernel ended it
    CPU = auto()
    WALL = auto()
    OUTPUT = auto()
    FILES = auto()
    STOPPED = auto()  # the caller gave up


@dataclass(frozen=True, slots=True)
class Ended:
    """code: exit code, 128 + number after a signal. cpu: seconds. verdict: what its pipe had."""

    reason: Reason
    code: int
    cpu: float
    verdict: bytes
    errors: str


class Process(ABC):
    """A started program, to be watched once."""

    def __init__(self, popen: subprocess.Popen[Any]) -> None:
        self._popen = popen
        self._end: tuple[int, float] | None = None

    @abstractmethod
    def kill(self) -> None:
        """Kill it and all it started; returns before they are dead."""

    @abstractmethod
    def cpu(self) -> float:
        """Seconds of processor time so far; 0 where nobody can tell."""

    def files(self) -> int:
        """Files it has made so far, once it has started; 0 where nobody can tell."""
        return 0

    def end(self, wait: bool = False) -> tuple[int, float] | None:
        """Exit code and seconds of processor time once it is dead; None while it lives."""
        if self._end is None:
            pid, status, used = os.wait4(self._popen.pid, 0 if wait else os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._popen.returncode = code
                self._end = 128 - code if code < 0 else code, used.ru_utime + used.ru_stime
        return self._end


def cpu_of(pid: int) -> float:
    """Processor time of another process, to the nanosecond; 0 where the system does not say.

    The kernel's own limit, RLIMIT_CPU, counts in clock ticks and can be off by a quarter.
    """
    if sys.platform != "linux":
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) makes of a pid
    except OSError:  # it has ended
        return 0.0


@dataclass(frozen=True)
class Bounds:
    """cpu, wall: seconds. limits: bytes and files. stopped: whether the caller has given up."""

    cpu: float
    wall: float
    limits: Limits
    stopped: Callable[[], bool]


def watch(process: Process, stdout: int, stderr: int, verdict: int, bounds: Bounds) -> Ended:
    """Wait until `process` is dead, and kill it where it goes too far.

    stdout, stderr, verdict: descriptors to read from. The end of standard error is kept, the rest
    of the output is dropped as it comes.
    """
    errors, said, printed, reason = b"", b"", 0, Reason.ENDED
    start = looked = time.monotonic()
    for pipe, piece in _pieces(process, (stdout, stderr, verdict)):
        printed += len(piece)
        if pipe == stderr:
            errors = (errors + piece)[-TAIL:]
        elif pipe == verdict:
            said = (said + piece)[:TAIL]
        if printed > bounds.limits.output:
            reason = Reason.OUTPUT
        elif time.monotonic() - looked >= TICK:
            looked = time.monotonic()
            reason = _overstepped(process, bounds, start, started=bool(said))
        if reason is not Reason.ENDED:
            process.kill()
            break
    end = process.end(wait=True)
    assert end is not None  # it was waited for
    code, cpu = end
    if reason is Reason.ENDED and cpu > bounds.cpu:  # since the last look
        reason = Reason.CPU
    return Ended(reason, code, cpu, said, errors.decode("utf-8", "replace"))


def _pieces(process: Process, pipes: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """(pipe, what came from it) until the process is dead; (-1, b"") when nothing comes."""
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = selector.select(TICK) if selector.get_map() else []
            for key, _ in ready:
                piece = os.read(key.fd, READ)
                if not piece:
                    selector.unregister(key.fd)
                yield key.fd, piece
            if not ready:
                if process.end():
                    return
                yield -1, b""
                if not selector.get_map():  # at its end as a rule, but a program can close pipes
                    time.sleep(0.001)


def _overstepped(process: Process, bounds: Bounds, since: float, *, started: bool) -> Reason:
    """ENDED while all is well. started: the program's first line has been reached."""
    if bounds.stopped():
        return Reason.STOPPED
    if time.monotonic() - since > bounds.wall:
        return Reason.WALL
    if started and process.cpu() > bounds.cpu:
        return Reason.CPU
    if started and process.files() > bounds.limits.files:
        return Reason.FILES
    return Reason.ENDED
