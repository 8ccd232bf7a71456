"""What a model has answered, on disk: one row per request, so that a killed run goes on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
AT_ONCE = 500  # keys of one query


class Answers:
    """Values by key in a SQLite file; a group is stored whole or not at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values that are there."""
        found: dict[str, Any] = {}
        wanted = list(keys)
        for at in range(0, len(wanted), AT_ONCE):
            part = wanted[at : at + AT_ONCE]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, value FROM answers WHERE key IN ({marks})"  # noqa: S608 (marks)
            found.update((k, json.loads(v)) for k, v in self._db.execute(query, part))
        return found

    def add(self, values: dict[str, Any]) -> None:
        """Store a group."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
