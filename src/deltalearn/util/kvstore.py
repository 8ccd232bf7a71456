"""Values by key in one SQLite file: what costs money or hours to make is written once and kept."""

from __future__ import annotations

import errno
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from deltalearn.errors import UserError, is_disk_full, is_sqlite_place
from deltalearn.util.sqlite import open_sqlite

SCHEMA_VERSION = 1
SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key PRIMARY KEY, value NOT NULL) WITHOUT ROWID"
BATCH_SIZE = 500  # keys of one query
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

Key = TypeVar("Key", bound=str | bytes)
Value = TypeVar("Value", bound=str | bytes | int | float)


class KeyValueStore(Generic[Key, Value]):
    """One table of keys and values, in WAL mode: a group is stored whole or not at all.

    Several processes may read and write it. A kill loses at most the group that was being written.

    Args:
        path: The file; it and its folder are made.
        holds: What the values are. A file of something else is refused.

    Raises:
        UserError: The file is damaged or of something else, cannot be written, or is kept locked by
            another process.
        OSError: ENOSPC, no room is left; what was stored before is kept.
    """

    def __init__(self, path: Path, holds: str) -> None:
        self.path = path
        self._holds = holds
        with self._told_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = open_sqlite(path)
            self._set_up(zlib.crc32(holds.encode()) >> 1)  # a signed number of 32 bits

    def _set_up(self, kind: int) -> None:
        found = self._db.execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
            "FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if found[:2] == (kind, SCHEMA_VERSION):
            return
        if any(found):
            raise UserError(f"{self.path}: not a store of {self._holds}; move it away")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA}; PRAGMA application_id={kind}; "
            f"PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )

    def close(self) -> None:
        """Close the SQLite file."""
        self._db.close()

    def get(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Return the values of those of `keys` that are stored."""
        wanted = list(keys)
        found: dict[Key, Value] = {}
        with self._told_errors():
            for at in range(0, len(wanted), BATCH_SIZE):
                part = wanted[at : at + BATCH_SIZE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM entries WHERE key IN ({marks})"  # noqa: S608 (marks)
                found.update(self._db.execute(query, part))
        return found

    def add(self, values: Mapping[Key, Value]) -> None:
        """Store a group, in place of older values of the same keys."""
        with self._told_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", values.items())

    @contextmanager
    def _told_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            told = f"{self.path}: {error}"
            if is_disk_full(error):
                raise OSError(errno.ENOSPC, f"no room left ({error})", str(self.path)) from error
            if code in DAMAGED:
                raise UserError(
                    f"{told}; this is no store of {self._holds}, or it is damaged; move it away"
                ) from error
            if is_sqlite_place(error) or isinstance(error, OSError):
                raise UserError(f"{told}; make the file and its folder writable") from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise UserError(f"{told}; another process holds it, wait until it ends") from error
            raise


class JsonStore(KeyValueStore[str, Any]):
    """Values of any form, which are stored as JSON."""

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of `keys` that are stored."""
        return {key: json.loads(text) for key, text in super().get(keys).items()}

    def add(self, values: Mapping[str, Any]) -> None:
        """Store a group, in place of older values of the same keys."""
        super().add({key: json.dumps(value) for key, value in values.items()})
