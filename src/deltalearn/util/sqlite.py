"""SQLite files that several processes write: who waits for another one can still be interrupted.

SQLite's own waiting is one call into C, in which Python hears no signal.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LOCK_SECONDS = 60.0  # that another process may hold a file
TURN = 0.1  # seconds of SQLite's own waiting, after which Python sees to signals


def open_sqlite(path: Path) -> sqlite3.Connection:
    """Open a file for reading and writing.

    Args:
        path: It is made if it is not there.

    Returns:
        A connection whose statements wait for other processes up to LOCK_SECONDS.
    """
    return sqlite3.connect(path, timeout=TURN, factory=_Connection)


class _Cursor(sqlite3.Cursor):
    """Its statements are tried again while another process holds the file."""

    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        return _patiently(lambda: super(_Cursor, self).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> _Cursor:
        rows = list(parameters)  # the first is asked for before it is known whether there is a lock
        return _patiently(lambda: super(_Cursor, self).executemany(sql, rows))

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        return _patiently(lambda: super(_Cursor, self).executescript(script))


class _Connection(sqlite3.Connection):
    """A connection whose cursors are patient."""

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        return self.cursor().executescript(script)


def _patiently(work: Callable[[], Any]) -> Any:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)  # absent where the module itself raises
            held = code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
            if not held or time.monotonic() >= end:
                raise
            time.sleep(TURN / 10)  # where SQLite did not wait by itself
