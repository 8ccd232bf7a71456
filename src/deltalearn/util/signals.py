"""Stop when asked to: say so at once, finish what is in flight, save, leave, begin nothing more."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from deltalearn.util.distributed import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ACKNOWLEDGED = "stopping after what is in flight; press again to leave at once"


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved its state; the text says where it stands.

    Attributes:
        number: The signal by which it was asked.
    """

    number: int = signal.SIGINT


class _Request:
    """What this process was asked by, and has not acted on yet: a block may end before it has."""

    number: int | None = None


class SafeStop:
    """Within the block SIGINT and SIGTERM set `asked`; a second one interrupts at once.

    The first is acknowledged on the screen. If the block ends without having seen it, the request
    stands: `leave_if_asked` and the next block find it. Signals reach the main thread only;
    elsewhere the block changes nothing.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._asked = False

    @property
    def asked(self) -> bool:
        """Tell whether the process was asked to stop."""
        self._asked = self._asked or (bool(self._before) and _Request.number is not None)
        return self._asked

    def __enter__(self) -> SafeStop:
        if _in_main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if _Request.number is not None:
            raise _taken("")
        _Request.number = number
        if is_first_process():
            with suppress(OSError):  # not print, which may be at work below this handler
                os.write(2, f"\n{ACKNOWLEDGED}\n".encode())

    def leave(self, where: str) -> None:
        """Raise `Stopped` with the text `where`."""
        raise _taken(where)


def leave_if_asked(where: str) -> None:
    """Raise `Stopped` if the process was asked to stop: called between any two pieces of work.

    Args:
        where: What is done, for the person who asked.
    """
    if _in_main_thread() and _Request.number is not None:
        raise _taken(where)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what must be tidied up is."""
    mine = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != mine:  # a fork that has no business here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        _Request.number = number
        raise _taken("")

    if _in_main_thread():
        signal.signal(signal.SIGTERM, end)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _taken(where: str) -> Stopped:
    """The request as an exception; it is acted on now."""
    stopped = Stopped(where)
    stopped.number = _Request.number or signal.SIGINT
    _Request.number = None
    return stopped
