"""What became of a program, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 1024**2
DETAIL = 300  # characters of an outcome's detail at most


class Status(StrEnum):
    """One word for how a program ended; only `PASSED` counts as right."""

    PASSED = "passed"  # ran to its end without an exception
    FAILED = "failed"  # an exception, or an end before its last line
    TIMED_OUT = "timed out"
    MEMORY = "memory"
    OUTPUT = "output"  # printed more, or made more files, than it may
    CRASHED = "crashed"  # died of a signal, such as a segmentation fault


@dataclass(frozen=True, slots=True)
class Outcome:
    """detail: why it did not pass, one printable line of at most 300 characters, else "".

    It quotes the program, so it is hostile text still. cpu: seconds of processor time, start of
    the interpreter included.
    """

    status: Status
    detail: str
    cpu: float

    @property
    def passed(self) -> bool:
        """True if it ran to its end."""
        return self.status is Status.PASSED


@dataclass(frozen=True, slots=True)
class Limits:
    """Resources that a program may use.

    Attributes:
        memory: Bytes of address space.
        disk: Bytes in its `/tmp`, which is in memory too.
        files: In `/tmp`.
        output: Bytes printed in all; they are not kept.
    """

    memory: int = 2048 * MIB
    disk: int = 64 * MIB
    files: int = 10_000
    output: int = 8 * MIB


def printable(text: str, limit: int = DETAIL) -> str:
    """`text` on one line: what a terminal would obey or hide is written as an escape."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit]
    )
    return shown if len(text) <= limit >= len(shown) else shown[: limit - 1] + "…"
