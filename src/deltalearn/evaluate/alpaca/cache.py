"""Verdicts on disk (SQLite), each under the identity of its judge: what is asked once is kept.

Judges share a file, never a row: a verdict is found only under everything that makes its judge the
same one, and under both texts, the instruction and the seed of the order.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import JudgeIdentity, Verdict
from deltalearn.util.files import canonical_json

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS judges (
    digest   TEXT PRIMARY KEY,
    identity TEXT NOT NULL             -- JSON of JudgeIdentity
);
CREATE TABLE IF NOT EXISTS verdicts (
    judge   TEXT NOT NULL REFERENCES judges,
    key     TEXT NOT NULL,             -- hash of instruction, both answers and seed
    verdict TEXT NOT NULL,             -- JSON of Verdict
    created INTEGER NOT NULL,          -- seconds since 1970
    PRIMARY KEY (judge, key)
);
"""


class VerdictCache:
    """The file. A group of verdicts is stored whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Open or create it. UserError if `path` is something else."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = sqlite3.connect(path, timeout=60)
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != SCHEMA_VERSION and (version or tables):
                raise UserError(f"{path}: a database of something else; give another file")
            with self.db:
                self.db.executescript(SCHEMA)
                self.db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: no cache of verdicts ({error}); move it away") from error

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def get(self, judge: JudgeIdentity, keys: Iterable[str]) -> dict[str, Verdict]:
        """This judge's verdicts among `keys`."""
        rows = self.db.execute(
            "SELECT key, verdict FROM verdicts WHERE judge = ? "
            "AND key IN (SELECT value FROM json_each(?))",
            [judge.digest, json.dumps(list(keys))],
        )
        return {key: _verdict(text) for key, text in rows}

    def add(self, judge: JudgeIdentity, verdicts: Sequence[tuple[str, Verdict]]) -> None:
        """Store verdicts by key, in place of older ones."""
        now = int(time.time())
        rows = [(judge.digest, key, json.dumps(asdict(v)), now) for key, v in verdicts]
        with self.db:
            self.db.execute(
                "INSERT OR IGNORE INTO judges VALUES (?, ?)",
                [judge.digest, canonical_json(asdict(judge))],
            )
            self.db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", rows)


def _verdict(text: str) -> Verdict:
    value = json.loads(text)
    value["marks"] = tuple(value["marks"])
    value["logprobs"] = value["logprobs"] and tuple(value["logprobs"])
    return Verdict(**value)
