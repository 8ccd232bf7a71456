"""Verdicts on disk, each under the identity of its judge: what is asked once is kept.

Judges share a file, never a row: a verdict is found only under everything that makes its judge the
same one, and under both texts, the instruction and the seed of the order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from deltalearn.judge.verdicts import JudgeIdentity, Verdict
from deltalearn.util.kvstore import KeyValueStore

FILE = "judge_verdicts.sqlite"  # beside the answers that are judged


class VerdictCache:
    """The verdicts of any number of judges in one file."""

    def __init__(self, path: Path) -> None:
        self._store = KeyValueStore[str, str](path, "verdicts of judges")

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def get(self, judge: JudgeIdentity, keys: Iterable[str]) -> dict[str, Verdict]:
        """Return this judge's verdicts among `keys`, by key."""
        places = {f"{judge.digest}/{key}": key for key in keys}
        found = self._store.get(places)
        read = TypeAdapter(Verdict).validate_python
        return {places[at]: read(json.loads(text)["verdict"]) for at, text in found.items()}

    def add(self, judge: JudgeIdentity, verdicts: Sequence[tuple[str, Verdict]]) -> None:
        """Store verdicts by key, in place of older ones; every row names its judge."""
        named = asdict(judge)
        self._store.add(
            {
                f"{judge.digest}/{key}": json.dumps({"judge": named, "verdict": asdict(verdict)})
                for key, verdict in verdicts
            }
        )
