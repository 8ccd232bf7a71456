"""Log-probabilities of answers under the untouched student, computed once and kept.

One row per (weights, precision, prompt ids, answer ids): everything that changes the value is in
the key, and nothing else is, so that another lr, beta, loss, seed or pairing never scores again
and changed weights under the same path always do (PEERS B18-B20).
"""

from __future__ import annotations

import hashlib
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

Row = tuple[Sequence[int], Sequence[int]]
Scorer = Callable[[Sequence[Row]], Iterable[tuple[int, float]]]

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key     BLOB PRIMARY KEY,  -- SHA-256 of scope, prompt ids and answer ids
    logprob REAL NOT NULL,     -- sum over the answer's tokens
    tokens  INTEGER NOT NULL
) WITHOUT ROWID;
"""
COMMIT_EVERY = 2048  # answers; what a crash can lose


class ReferenceCache:
    """Summed log-probability per answer, append-only and crash-safe (SQLite in WAL mode)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        self._db.execute("PRAGMA journal_mode=WAL")
        with self._db:
            self._db.executescript(SCHEMA)
        self.scored = 0  # answers this object had to compute

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def logprobs(self, scope: str, rows: Sequence[Row], score: Scorer) -> list[float]:
        """Summed log-probabilities of `rows` (prompt ids, answer ids), missing ones scored.

        scope: the weights' fingerprint and the precision they are run in. score: given the
        missing rows, yields (index among them, summed log-probability).
        """
        keys = [_key(scope, prompt, answer) for prompt, answer in rows]
        known = self._known(keys)
        missing = {key: i for i, key in enumerate(keys) if key not in known}
        order = list(missing.values())
        fresh = []
        for at, value in score([rows[i] for i in order]) if order else ():
            index = order[at]
            known[keys[index]] = value
            fresh.append((keys[index], value, len(rows[index][1])))
            if len(fresh) >= COMMIT_EVERY:
                self._append(fresh)
        self._append(fresh)
        return [known[key] for key in keys]

    def _append(self, fresh: list[tuple[bytes, float, int]]) -> None:
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?,?,?)", fresh)
        self.scored += len(fresh)
        fresh.clear()

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        for part in _chunks(keys, 500):
            marks = ",".join("?" * len(part))
            query = f"SELECT key, logprob FROM answers WHERE key IN ({marks})"  # noqa: S608
            found.update(self._db.execute(query, part))
        return found


def _key(scope: str, prompt: Sequence[int], answer: Sequence[int]) -> bytes:
    hasher = hashlib.sha256(scope.encode())
    for ids in (prompt, answer):  # the length first, so that no two splits collide
        hasher.update(len(ids).to_bytes(8, "little"))
        hasher.update(array("q", ids).tobytes())
    return hasher.digest()


def _chunks(items: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
