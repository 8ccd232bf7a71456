"""Verdicts on disk, each under the identity of its judge: what is asked once is kept.

Judges share a file, never a row: a verdict is found only under everything that makes its judge the
same one, and under both texts, the instruction and the seed of the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from deltalearn.judge.verdicts import JudgeIdentity, Verdict
from deltalearn.util.kvstore import JsonStore

FILE = "judge_verdicts.sqlite"  # beside the answers that are judged


class VerdictCache:
    """The verdicts of any number of judges in one file."""

    def __init__(self, path: Path) -> None:
        self._store = JsonStore(path, "verdicts of judges")
        self.close = self._store.close

    def get(self, judge: JudgeIdentity, keys: Iterable[str]) -> dict[str, Verdict]:
        """Return this judge's verdicts among `keys`, by key."""
        found = self._store.get(f"{judge.digest}/{key}" for key in keys)
        read = TypeAdapter(Verdict).validate_python
        return {at.partition("/")[2]: read(value["verdict"]) for at, value in found.items()}

    def add(self, judge: JudgeIdentity, key: str, verdict: Verdict) -> None:
        """Store a verdict, in place of an older one; every row names its judge."""
        row = {"judge": asdict(judge), "verdict": asdict(verdict)}
        self._store.add({f"{judge.digest}/{key}": row})
