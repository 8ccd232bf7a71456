"""The response store: one SQLite row per request, keyed by everything that determines it.

Beside the answers it holds what the keys are made of (model, messages, settings), so that a store
can be checked, merged, paired and exported without the run that filled it. Memory does not grow
with the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deltalearn.errors import UserError, is_sqlite_place, place_fault
from deltalearn.records import Prompt, Request, Response
from deltalearn.util.files import canonical_json, digest
from deltalearn.util.sqlite import open_sqlite
from deltalearn.util.text_format import did_you_mean

SCHEMA_VERSION = 5

SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    id       INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,    -- fingerprint of its files, or its name at a server
    name     TEXT NOT NULL            -- what a person called it last
);
CREATE TABLE IF NOT EXISTS names (    -- one model may be asked in two ways under two names
    id       INTEGER PRIMARY KEY,     -- grows: of two names the greater was given last
    name     TEXT NOT NULL,
    model    INTEGER NOT NULL REFERENCES models,
    settings INTEGER NOT NULL REFERENCES settings,
    UNIQUE (model, settings, name)
);
CREATE TABLE IF NOT EXISTS prompts (
    id       INTEGER PRIMARY KEY,
    digest   TEXT NOT NULL UNIQUE,
    messages TEXT NOT NULL            -- JSON list of {role, content}
);
CREATE TABLE IF NOT EXISTS settings (
    id   INTEGER PRIMARY KEY,
    json TEXT NOT NULL UNIQUE         -- canonical: all that decides an answer, see Settings.key
);
CREATE TABLE IF NOT EXISTS responses (
    id                INTEGER PRIMARY KEY,
    key               TEXT NOT NULL UNIQUE, -- hash of model, messages, settings and sample
    model             INTEGER NOT NULL REFERENCES models,
    settings          INTEGER NOT NULL REFERENCES settings,
    prompt            INTEGER NOT NULL REFERENCES prompts,
    sample            INTEGER NOT NULL,
    prompt_id         TEXT NOT NULL,  -- what the prompt set called it
    text              TEXT NOT NULL,
    reasoning         TEXT NOT NULL,  -- a thinking trace before the text, with its marks
    token_ids         BLOB NOT NULL,  -- little-endian uint32; empty where the engine gives none
    finish_reason     TEXT NOT NULL,  -- stop | length | error
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER,        -- NULL: as many as token_ids
    seconds           REAL,           -- from asking to having
    seed              TEXT,           -- decimal: what the engine was given, of up to 128 bits
    engine            TEXT NOT NULL,  -- name and version
    fault             TEXT,           -- kind of error; NULL unless finish_reason is error
    error             TEXT,           -- why there is no answer
    tries             INTEGER NOT NULL,
    created           INTEGER NOT NULL, -- seconds since 1970
    checksum          BLOB NOT NULL   -- of the columns CONTENT
);
CREATE INDEX IF NOT EXISTS responses_by_model ON responses (model, settings, prompt, sample);
CREATE TABLE IF NOT EXISTS state (
    version TEXT NOT NULL             -- drawn anew whenever answers come or go
);
INSERT INTO state SELECT hex(randomblob(16)) WHERE NOT EXISTS (SELECT * FROM state);
CREATE VIEW IF NOT EXISTS called AS   -- every name of every group of answers that there is
SELECT coalesce(n.id, 0) AS id, coalesce(n.name, m.name) AS name, g.model, g.settings
FROM (SELECT DISTINCT model, settings FROM responses) g JOIN models m ON m.id = g.model
LEFT JOIN names n ON n.model = g.model AND n.settings = g.settings;
CREATE VIEW IF NOT EXISTS labels AS   -- of each group, the name that was given last
SELECT model, settings, name, max(id) AS id FROM called GROUP BY model, settings;
"""
RENAMED_IN_5 = (("responses", "thought", "reasoning"), ("settings", "how", "json"),
                ("state", "mark", "version"))  # fmt: skip
NEW_VERSION = "UPDATE state SET version = hex(randomblob(16))"
RESPONSE = (
    "key, text, token_ids, finish_reason, prompt_tokens, error, reasoning, completion_tokens, "
    "seconds, seed, fault, tries"
)
CONTENT = (  # of an answer, beside its key and what that is made of
    "prompt_id, text, reasoning, token_ids, finish_reason, prompt_tokens, completion_tokens, "
    "seconds, seed, engine, fault, error, tries, created"
)
INSERT = f"""
INSERT INTO responses (key, model, settings, prompt, sample, {CONTENT}, checksum)
VALUES (
    ?, (SELECT id FROM models WHERE identity = ?), (SELECT id FROM settings WHERE json = ?),
    (SELECT id FROM prompts WHERE digest = ?), ?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?
)
"""  # noqa: S608 (CONTENT is a constant)


WHOSE = (  # what a name stands for: itself, before the beginning of an identity
    "c.name = ?1 OR m.identity = ?1",
    "length(?1) >= 8 AND substr(m.identity, 1, length(?1)) = ?1",
)


class Group(NamedTuple):
    """The answers of one model to one set of settings, which a name stands for."""

    model: int
    settings: int
    identity: str
    settings_json: str


class ResponseStore:
    """Responses on disk (SQLite in WAL mode). A group is stored whole or not at all."""

    def __init__(self, path: Path, *, existing: bool = False) -> None:
        """Open the store, or create it.

        A store of the schema before is brought up to date.

        Args:
            path: An SQLite file.
            existing: Refuse to create a store.

        Raises:
            UserError: If `path` is not a store of a known schema, or is not there although it must
                be.
        """
        if existing and not path.is_file():
            raise UserError(f"{path}: no response store here")
        self.path = path
        self._to_read = path.is_file() and not all(
            os.access(place, os.W_OK) for place in (path, path.parent)
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = self._connect()
            self._set_up(existing)
        except OSError as error:
            raise UserError(place_fault(error) or f"{path}: {error}") from error
        except sqlite3.DatabaseError as error:
            if is_sqlite_place(error):
                raise UserError(self._unwritable(error)) from error
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise UserError(f"{path}: not a response store ({error}); move it away") from error

    def _connect(self) -> sqlite3.Connection:
        """Open the file; where nothing can be written, as it is: WAL needs a file beside it."""
        if not self._to_read:
            return open_sqlite(self.path)
        log = self.path.with_name(f"{self.path.name}-wal")
        if log.is_file() and log.stat().st_size:
            raise UserError(
                f"{self.path}: its last answers are in {log.name}, and nothing can be written here "
                "to take them in; copy the folder, and read the copy"
            )
        place = self.path.absolute().as_uri()
        return sqlite3.connect(f"{place}?mode=ro&immutable=1", uri=True)

    def _unwritable(self, error: object) -> str:
        return (
            f"{self.path}: cannot be written ({error}); make the file and its folder writable, or "
            "copy them"
        )

    def _set_up(self, existing: bool) -> None:
        # One statement, one snapshot: another process may be making the store at this moment.
        version, tables = self.db.execute(
            "SELECT user_version, (SELECT count(*) FROM sqlite_master) FROM pragma_user_version"
        ).fetchone()
        if version == 0 and (tables or existing):  # 0: of anybody's database, and of an empty file
            remedy = "" if existing else "; move it away"
            raise UserError(f"{self.path}: not a response store{remedy}")
        if version not in (0, 4, SCHEMA_VERSION):
            raise UserError(
                f"{self.path}: made by another version of deltalearn (schema {version}, here "
                f"{SCHEMA_VERSION}); use a new output directory"
            )
        if not self._to_read:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
        if version == 0:
            with self.db:
                self.db.executescript(
                    f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;"
                )
        elif version == 4:
            self._rename_columns()

    def _rename_columns(self) -> None:
        """Bring a store of schema 4 to 5. No value changes, so keys and checksums stay valid."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            if self.db.execute("PRAGMA user_version").fetchone()[0] == 4:  # no other was faster
                for table, old, new in RENAMED_IN_5:
                    self.db.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
                self.db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def __enter__(self) -> ResponseStore:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if is_sqlite_place(error):
            raise UserError(self._unwritable(error)) from error
        if is_damage(error):
            raise UserError(
                f"{self.path}: damaged ({error}); `deltalearn responses check` tells more"
            ) from error

    def close(self) -> None:
        """Close the store; the write-ahead log is folded in."""
        self.db.close()

    # -- writing -----------------------------------------------------------------------------

    def name_model(self, identity: str, name: str, settings_json: str | None = None) -> None:
        """Remember what a person calls the answers of a model.

        Args:
            identity: Of the model.
            name: What it is called.
            settings_json: The settings (`Settings.key`) whose answers are meant; None for all
                answers of the model that have no name of their own.
        """
        with self.db:
            self.db.execute(
                "INSERT INTO models (identity, name) VALUES (?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET name = excluded.name",
                [identity, name],
            )
            if settings_json is not None:
                self.db.execute("INSERT OR IGNORE INTO settings (json) VALUES (?)", [settings_json])
                self.db.execute(
                    "INSERT OR REPLACE INTO names (name, model, settings) VALUES (?, (SELECT id "
                    "FROM models WHERE identity = ?), (SELECT id FROM settings WHERE json = ?))",
                    [name, identity, settings_json],
                )

    def add(self, answered: Sequence[tuple[Request, Response]], *, engine: str) -> None:
        """Store responses to their requests in one transaction.

        Args:
            answered: Requests with their responses.
            engine: Name and version of the engine.

        Raises:
            ValueError: If a response answers another request.
            sqlite3.IntegrityError: If one is in the store already; nothing is stored then.
        """
        now = int(time.time())
        models, settings, prompts, rows = set(), set(), {}, []
        for request, r in answered:
            if request.key != r.key:
                raise ValueError(f"the response {r.key} answers another request, {request.key}")
            prompt = prompt_digest(request.prompt)
            models.add((request.model, request.model))
            settings.add((request.settings_json,))
            prompts[prompt] = request.prompt.messages
            seed = None if r.seed is None else str(r.seed)
            seconds = None if r.seconds is None else float(r.seconds)
            content = (
                request.prompt.id, r.text, r.reasoning, array("I", r.token_ids).tobytes(),
                r.finish_reason, r.prompt_tokens, r.completion_tokens, seconds, seed, engine,
                r.fault, r.error, r.tries, now,
            )  # fmt: skip
            place = r.key, request.model, request.settings_json, prompt, request.sample
            rows.append((*place, *content, checksum(content)))
        texts = [(key, canonical_json(list(messages))) for key, messages in prompts.items()]
        with self.db:
            many = self.db.executemany
            many("INSERT OR IGNORE INTO models (identity, name) VALUES (?, ?)", models)
            many("INSERT OR IGNORE INTO settings (json) VALUES (?)", settings)
            many("INSERT OR IGNORE INTO prompts (digest, messages) VALUES (?, ?)", texts)
            many(INSERT, rows)
            self.db.execute(NEW_VERSION)

    def drop_errors(self, keys: Iterable[str]) -> int:
        """Forget the error rows among `keys`, so that they are asked again; return how many."""
        with self.db:
            cursor = self.db.execute(
                "DELETE FROM responses WHERE finish_reason = 'error' "
                "AND key IN (SELECT value FROM json_each(?))",
                [json.dumps(list(keys))],
            )
            if cursor.rowcount:
                self.db.execute(NEW_VERSION)
        return cursor.rowcount

    # -- reading -----------------------------------------------------------------------------

    def errors(self, keys: Iterable[str]) -> int:
        """Count those of `keys` that ended in an error."""
        rows = self._select("finish_reason", keys)
        return sum(reason == "error" for (reason,) in rows)

    def have(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that are in the store."""
        return {row[0] for row in self._select("key", keys)}

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """The stored responses among `keys`."""
        return {row[0]: response_of(row) for row in self._select(RESPONSE, keys)}

    def count(self) -> int:
        """Number of rows, errors included."""
        return self.db.execute("SELECT count(*) FROM responses").fetchone()[0]

    def version(self) -> str:
        """Random hexadecimal text, drawn anew whenever answers come or go."""
        return self.db.execute("SELECT version FROM state").fetchone()[0]

    def named(self, name: str) -> list[Group]:
        """Find the answers that a name, or the identity of a model or its beginning, stands for.

        Raises:
            UserError: If there are none; the text lists the names that there are.
        """
        for condition in WHOSE:
            query = (
                "SELECT DISTINCT c.model, c.settings, m.identity, s.json FROM called c "  # noqa: S608
                "JOIN models m ON m.id = c.model JOIN settings s ON s.id = c.settings "
                f"WHERE {condition} ORDER BY c.model, c.settings"
            )
            if found := [Group(*row) for row in self.db.execute(query, [name])]:
                return found
        given = (
            "SELECT name FROM names UNION SELECT name FROM models UNION SELECT identity FROM models"
        )
        if (name,) in self.db.execute(given).fetchall():
            raise UserError(f"{self.path}: {name} has no answers yet")
        known = [row[0] for row in self.db.execute("SELECT DISTINCT name FROM called ORDER BY 1")]
        raise UserError(
            f"{self.path}: no model {name!r}; it has {', '.join(known) or 'none'}"
            f"{did_you_mean(name, known)}"
        )

    def _select(self, columns: str, keys: Iterable[str]) -> Iterator[tuple]:
        # json_each takes any number of keys; `columns` is a constant of this module.
        query = f"SELECT {columns} FROM responses WHERE key IN (SELECT value FROM json_each(?))"  # noqa: S608
        return self.db.execute(query, [json.dumps(list(keys))])


def is_damage(error: BaseException | None) -> bool:
    """True if SQLite has met pages that cannot be as it wrote them."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def prompt_digest(prompt: Prompt) -> str:
    """Identity of a prompt: its messages, whatever it is called."""
    return digest(list(prompt.messages))


def checksum(content: Sequence[Any]) -> bytes:
    """Hash the values of the columns CONTENT to eight bytes; SQLite has no checksums of its own."""
    plain = [value.hex() if isinstance(value, bytes) else value for value in content]
    plain = [int(value) if isinstance(value, bool) else value for value in plain]  # as SQLite does
    return hashlib.blake2b(json.dumps(plain).encode(), digest_size=8).digest()


def response_of(row: tuple[Any, ...]) -> Response:
    """Make a Response of the columns RESPONSE."""
    key, text, blob, finish_reason, prompt_tokens, error, reasoning, tokens, *rest = row
    seconds, seed, *others = rest
    ids = array("I")
    ids.frombytes(blob)
    seed = None if seed is None else int(seed)
    told = finish_reason, prompt_tokens, error, reasoning, tokens, seconds, seed
    return Response(key, text, tuple(ids), *told, *others)
