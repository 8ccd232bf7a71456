"""How far a tuning is and how fast it was, from its log: time estimates need no other clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LOG = "log.jsonl"  # in a tuning's folder; `seconds` are of training, over all its starts


@dataclass(frozen=True)
class Pace:
    """A tuning's steps so far.

    Attributes:
        steps: That were taken.
        seconds: Of a step, evaluations and checkpoints included; None before the third step. The
            first one, in which kernels are compiled, does not count.
    """

    steps: int
    seconds: float | None

    @classmethod
    def of(cls, folder: Path) -> Pace:
        """Read the log of a tuning; without one nothing was done."""
        lines = []
        file = folder / LOG
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                record = json.loads(line)
                lines.append((int(record["step"]), float(record["seconds"])))
            except (ValueError, KeyError, TypeError):  # torn by a kill, or of an older version
                break
        if len(lines) < 3:
            return cls(len(lines), None)
        (first, began), (last, ended) = lines[0], lines[-1]
        return cls(last, (ended - began) / max(1, last - first) or None)
