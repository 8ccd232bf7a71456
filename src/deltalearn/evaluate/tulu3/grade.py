"""The verdict of a grader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grade:
    """score: in [0, 1]. extracted: the answer that was found in the output, "" if none was."""

    score: float
    extracted: str
