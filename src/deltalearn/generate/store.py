"""The response store: one SQLite row per request, keyed by everything that determines it."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from deltalearn.errors import UserError
from deltalearn.records import Response

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key           TEXT PRIMARY KEY,   -- hash of model, messages, sampling and sample index
    model         TEXT NOT NULL,      -- fingerprint of the model's files
    prompt_id     TEXT NOT NULL,
    sample        INTEGER NOT NULL,
    text          TEXT NOT NULL,
    token_ids     BLOB NOT NULL,      -- little-endian uint32
    finish_reason TEXT NOT NULL,      -- stop | length | error
    prompt_tokens INTEGER NOT NULL,
    error         TEXT,               -- why there is no answer; NULL unless finish_reason is error
    engine        TEXT NOT NULL
) WITHOUT ROWID;
"""
COLUMNS = "key, text, token_ids, finish_reason, prompt_tokens, error"


class ResponseStore:
    """Responses on disk (SQLite in WAL mode). A batch is stored whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Open or create the store. UserError if `path` is not a store of this version."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise UserError(
                    f"{path}: made by another version of deltalearn (schema {version}, here "
                    f"{SCHEMA_VERSION}); use a new output directory"
                )
            with self._db:
                self._db.executescript(SCHEMA)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise UserError(f"{path}: not a response store ({error}); move it away") from error

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; the write-ahead log is folded in."""
        self._db.close()

    def add(
        self,
        responses: Iterable[Response],
        *,
        model: str,
        engine: str,
        prompts: Sequence[tuple[str, int]],
    ) -> None:
        """Store responses in one transaction; `prompts` gives (prompt id, sample) for each."""
        rows = [
            (r.key, model, prompt_id, sample, r.text, _pack(r.token_ids), r.finish_reason,
             r.prompt_tokens, r.error, engine)
            for r, (prompt_id, sample) in zip(responses, prompts, strict=True)
        ]  # fmt: skip
        with self._db:
            self._db.executemany("INSERT INTO responses VALUES (?,?,?,?,?,?,?,?,?,?)", rows)

    def have(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that are in the store."""
        return {row[0] for row in self._select("key", keys)}

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """The stored responses among `keys`."""
        return {row[0]: _response(row) for row in self._select(COLUMNS, keys)}

    def drop_errors(self, keys: Iterable[str]) -> int:
        """Forget the error rows among `keys`, so that they are asked again; return how many."""
        keys = list(keys)
        with self._db:
            cursor = self._db.execute(
                "DELETE FROM responses WHERE finish_reason = 'error' "
                "AND key IN (SELECT value FROM json_each(?))",
                [json.dumps(keys)],
            )
        return cursor.rowcount

    def count(self) -> int:
        """Number of rows, errors included."""
        return self._db.execute("SELECT count(*) FROM responses").fetchone()[0]

    def _select(self, columns: str, keys: Iterable[str]) -> Iterable[tuple]:
        # json_each takes any number of keys; `columns` is one of two constants of this module.
        query = f"SELECT {columns} FROM responses WHERE key IN (SELECT value FROM json_each(?))"  # noqa: S608
        return self._db.execute(query, [json.dumps(list(keys))])


def _pack(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def _response(row: tuple) -> Response:
    key, text, blob, finish_reason, prompt_tokens, error = row
    ids = array("I")
    ids.frombytes(blob)
    return Response(key, text, tuple(ids), finish_reason, prompt_tokens, error)
