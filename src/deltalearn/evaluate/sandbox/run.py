"""The sandbox: programs in, outcomes out."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import BinaryIO

from deltalearn.errors import UserError
from deltalearn.evaluate.sandbox.bubblewrap import REFUSED, Bubblewrap
from deltalearn.evaluate.sandbox.inside import READY, TOKEN
from deltalearn.evaluate.sandbox.interpreter import Interpreter
from deltalearn.evaluate.sandbox.outcome import MIB, Limits, Outcome, Status, printable
from deltalearn.evaluate.sandbox.unsafe import WARNING, Unsafe
from deltalearn.evaluate.sandbox.watch import Bounds, Ended, Reason, watch
from deltalearn.util.distributed import cores
from deltalearn.util.progress import console

TRIES = 3  # starts of one program, where the sandbox itself fails
PROBE = 30.0  # seconds for the program that tries the sandbox out
SIGNALLED = 128
OUT_OF_MEMORY = re.compile(r"(\w+\.)*_?\w*MemoryError\b")

NOT_ALLOWED = (
    "this benchmark runs programs that the model wrote; give --allow-code to run them, in a sandbox"
)


class NotStarted(Exception):
    """The sandbox failed before the program's first line; the text says what it said."""


class Sandbox:
    """Runs Python programs isolated. Safe to use from several threads."""

    def __init__(
        self,
        *,
        allow: bool,
        unsafe: bool = False,
        limits: Limits | None = None,
        packages: Sequence[str] = ("numpy",),
    ) -> None:
        """Try the sandbox out with a first program.

        Args:
            allow: The user's consent to run generated code.
            unsafe: Run without isolation; a warning says so on standard error.
            limits: Of each program.
            packages: Installed distributions that programs may import besides the standard library.

        Raises:
            UserError: Without consent, without bubblewrap, or where it makes no sandbox; the text
                names the remedy.
        """
        if not allow:
            raise UserError(NOT_ALLOWED)
        self._limits = limits or Limits()
        self._interpreter = Interpreter.find(packages)
        self._launcher: Bubblewrap | Unsafe
        if unsafe:
            console.print(f"warning: {WARNING}", markup=False)
            self._launcher = Unsafe(self._interpreter)
        else:
            self._launcher = Bubblewrap(self._interpreter, self._limits)
        first = "\n".join(f"import {name.replace('-', '_')}" for name in packages)
        (outcome,) = self.run_programs([first], timeout=PROBE, workers=1)
        if not outcome.passed:
            raise UserError(f"the sandbox does not run `{first}`: {outcome.detail}")

    def run_programs(
        self,
        programs: Iterable[str],
        *,
        timeout: float = 3.0,
        wall: float | None = None,
        workers: int | None = None,
    ) -> list[Outcome]:
        """Run programs, and say what became of each, in order.

        Args:
            programs: Python source.
            timeout: Seconds of processor time.
            wall: Seconds of wall clock, only to end programs that sleep (default: 4 times
                `timeout` and 5 more).
            workers: Programs at a time (default: the processors this process may use); each can
                take the memory and disk of `Limits`.

        Raises:
            UserError: If the sandbox stops working.
        """
        stop = threading.Event()
        wall = 4 * timeout + 5 if wall is None else wall
        bounds = Bounds(timeout, wall, self._limits, stop.is_set)
        pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="sandbox")
        try:
            return list(pool.map(lambda program: self._run(program, bounds), programs))
        except NotStarted as error:
            raise UserError(REFUSED.format(said=error)) from None
        finally:
            stop.set()  # without effect unless something went wrong
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, program: str, bounds: Bounds) -> Outcome:
        for _ in range(TRIES):
            token = secrets.token_bytes(TOKEN)
            ended = self._watch(token + program.encode("utf-8", "surrogatepass"), bounds)
            if ended.verdict.startswith(READY):
                return judge(ended, READY + token, bounds)
            if bounds.stopped():
                raise NotStarted("stopped")
        raise NotStarted(printable(ended.errors.strip()) or f"no word for {bounds.wall:g} s")

    def _watch(self, given: bytes, bounds: Bounds) -> Ended:
        with ExitStack() as inner, ExitStack() as outer:
            file = outer.enter_context(_anonymous_file())
            file.write(given)
            file.seek(0)
            reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
            stdout, stderr, verdict = reads
            for pipe in reads:
                outer.callback(os.close, pipe)
            for pipe in writes:
                inner.callback(os.close, pipe)
            # The kernel's own limit, for when nobody watches: coarse, and in whole seconds.
            seconds = math.ceil(1.5 * bounds.cpu) + 1
            settings = (writes[2], seconds, bounds.limits.memory, bounds.limits.disk)
            command = self._interpreter.command(*settings, self._launcher.packages)
            streams = {"stdin": file.fileno(), "stdout": writes[0], "stderr": writes[1]}
            process = self._launcher.start(command, streams, writes[2])
            inner.close()  # so that the pipes end with the program
            return watch(process, stdout, stderr, verdict, bounds)


def judge(ended: Ended, complete: bytes, bounds: Bounds) -> Outcome:
    """The outcome of a program that was started. complete: what its verdict pipe must have had."""

    def outcome(status: Status, detail: str = "") -> Outcome:
        return Outcome(status, printable(detail), ended.cpu)

    limits = bounds.limits
    error = _error(ended.errors)
    died = _signal(ended.code)
    told = {
        Reason.OUTPUT: (Status.OUTPUT, f"printed more than {limits.output / MIB:g} MiB"),
        Reason.FILES: (Status.OUTPUT, f"made more than {limits.files:,} files"),
        Reason.WALL: (Status.TIMED_OUT, f"still ran after {bounds.wall:g} s of wall clock"),
        Reason.CPU: (Status.TIMED_OUT, f"used {bounds.cpu:g} s of processor time"),
    }
    if ended.reason in told:
        return outcome(*told[ended.reason])
    if ended.verdict == complete:
        return outcome(Status.PASSED)
    if died == "SIGKILL":
        return outcome(Status.MEMORY, "killed by the system, for memory as a rule")
    if died:
        return outcome(Status.CRASHED, f"died of {died}")
    if OUT_OF_MEMORY.match(error):
        return outcome(Status.MEMORY, f"{error} (limit: {limits.memory / MIB:,.0f} MiB)")
    early = f"ended before its last line, with exit code {ended.code}"
    return outcome(Status.FAILED, error if error and ended.code else early)


def _error(printed: str) -> str:
    """The exception at the end of a traceback, with all its lines; or else the last line."""
    lines = printed.rstrip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    after = lines[frames[-1] + 1 :] if frames else []
    return "\n".join(after or lines[-1:]).strip()


def _signal(code: int) -> str:
    """Name of the signal that an exit code stands for, "" if for none."""
    with suppress(ValueError):
        return signal.Signals(code - SIGNALLED).name
    return ""


def _anonymous_file() -> BinaryIO:
    """A file in memory where there are such files; it has no name anywhere."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("program"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
