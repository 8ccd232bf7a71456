"""Maintenance of a store: list, check, merge, and forget a model."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.records import seen_messages
from deltalearn.responses.requests import request_key
from deltalearn.responses.store import (
    CONTENT,
    NEW_VERSION,
    SCHEMA_VERSION,
    Group,
    ResponseStore,
    checksum,
    is_damage,
)
from deltalearn.util.files import digest

ROWS_PER_TRANSACTION = 20_000  # rows of one transaction


def overview(store: ResponseStore) -> list[dict[str, Any]]:
    """List every model and its settings, with numbers of answers and tokens."""
    query = """
        SELECT l.name, m.identity, s.json, count(*), count(DISTINCT r.prompt),
               sum(r.finish_reason = 'length'), sum(r.finish_reason = 'error'),
               sum(coalesce(r.completion_tokens, length(r.token_ids) / 4)), group_concat(DISTINCT
               r.engine)
        FROM labels l JOIN responses r ON r.model = l.model AND r.settings = l.settings
        JOIN models m ON m.id = l.model JOIN settings s ON s.id = l.settings
        GROUP BY l.model, l.settings ORDER BY l.name, s.json
    """
    names = (
        "model", "identity", "settings", "responses", "prompts", "truncated", "errors", "tokens",
        "engines",
    )  # fmt: skip
    return [dict(zip(names, row, strict=True)) for row in store.db.execute(query)]


def faults(store: ResponseStore) -> list[tuple[str, str, int, str]]:
    """List all errors by model and kind: (model, kind of fault, number, one example)."""
    query = """
        SELECT l.name, coalesce(r.fault, 'unknown'), count(*), max(r.error)
        FROM labels l JOIN responses r ON r.model = l.model AND r.settings = l.settings
        WHERE r.finish_reason = 'error' GROUP BY 1, 2 ORDER BY 3 DESC
    """
    return store.db.execute(query).fetchall()


# -- integrity -----------------------------------------------------------------------------------


@dataclass
class Check:
    """Problems found in a store; none if the store is whole."""

    rows: int = 0
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, text: str) -> None:
        """Count a problem, and keep the first few of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= 3:
            self.problems.append(text)


def check(store: ResponseStore) -> Check:
    """Let SQLite check its pages, and recompute every key and checksum."""
    found = Check()
    for look in (_check_pages, _check_rows):  # rows may be whole where only an index is damaged
        try:
            look(store, found)
        except sqlite3.DatabaseError as error:
            found.note("pages", f"SQLite: {error}")
    return found


def _check_pages(store: ResponseStore, found: Check) -> None:
    for (line,) in store.db.execute("PRAGMA integrity_check(10)"):
        if line != "ok":
            found.note("pages", f"SQLite: {line}")


def _check_rows(store: ResponseStore, found: Check) -> None:
    query = f"""
        SELECT r.key, m.identity, p.digest, p.messages, s.json, r.sample, r.checksum, {CONTENT}
        FROM responses r LEFT JOIN models m ON m.id = r.model
        LEFT JOIN prompts p ON p.id = r.prompt LEFT JOIN settings s ON s.id = r.settings
        ORDER BY r.id
        """  # noqa: S608 (CONTENT is a constant)
    for row in store.db.execute(query):
        found.rows += 1
        _check_row(row, found)


def _check_row(row: tuple[Any, ...], found: Check) -> None:
    key, identity, prompt_digest, messages, settings_json, sample, sum_, *content = row
    if None in (identity, messages, settings_json):
        found.note("orphan", f"{key}: its model, prompt or settings are gone")
        return
    if checksum(content) != sum_:
        found.note("answer", f"{key}: its answer was altered")
    try:
        turns, system = json.loads(messages), json.loads(settings_json).get("system")
    except (ValueError, AttributeError):
        found.note("torn", f"{key}: its prompt or settings are torn")
        return
    if digest(turns) != prompt_digest:
        found.note("prompt", f"{key}: its prompt was altered")
        return  # its key cannot fit either
    seen = seen_messages(turns, system)
    if request_key(identity, seen, settings_json, sample) != key:
        found.note("key", f"{key}: the key is not that of its model, prompt and settings")


# -- two stores into one -------------------------------------------------------------------------


@dataclass
class Merged:
    """Counts of what a merge did with the rows of the other store."""

    added: int = 0
    same: int = 0  # there already
    mended: int = 0  # an error here, an answer there
    different: int = 0  # another answer to the same request; ours stays


TAKE_NAMES = """
INSERT OR IGNORE INTO main.names (name, model, settings)
SELECT c.name, mine.id, ours.id FROM other.called c
JOIN other.models m ON m.id = c.model JOIN main.models mine ON mine.identity = m.identity
JOIN other.settings s ON s.id = c.settings JOIN main.settings ours ON ours.json = s.json
WHERE NOT EXISTS (SELECT 1 FROM main.responses r WHERE r.model = mine.id AND r.settings = ours.id)
AND NOT EXISTS (SELECT 1 FROM main.names n WHERE n.model = mine.id AND n.settings = ours.id)
ORDER BY c.id
"""  # of groups of answers that we neither have nor have a name for


def merge(store: ResponseStore, other: Path) -> Merged:
    """Take over what another store has and this one lacks.

    An answer takes the place of an error. Where both have an answer, that of `store` stays: with
    sampling, or other hardware, the same request may well be answered in two ways. Names that
    `store` has given stay likewise.

    Args:
        store: Gets the answers.
        other: File of the other store.

    Returns:
        Counts of the other store's rows.

    Raises:
        UserError: If `other` is no response store, or is damaged.
    """
    with ResponseStore(other, existing=True):
        pass  # complains if it is none
    db = store.db
    db.execute("ATTACH ? AS other", [str(other)])
    result = Merged()
    try:
        if db.execute("PRAGMA other.user_version").fetchone()[0] != SCHEMA_VERSION:
            raise UserError(f"{other}: made by another version of deltalearn")
        with db:
            for table, columns in (
                ("models", "identity, name"),
                ("prompts", "digest, messages"),
                ("settings", "json"),
            ):
                db.execute(
                    f"INSERT OR IGNORE INTO {table} ({columns}) SELECT {columns} FROM other.{table}"  # noqa: S608
                )
            db.execute(TAKE_NAMES)
        last = 0
        while True:
            with db:
                end = db.execute(
                    "SELECT max(id) FROM (SELECT id FROM other.responses WHERE id > ? ORDER BY id "
                    "LIMIT ?)",
                    [last, ROWS_PER_TRANSACTION],
                ).fetchone()[0]
                if end is None:
                    break
                _merge_part(db, last, end, result)
            last = end
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise UserError(
                f"{other} or {store.path}: damaged ({error}); `deltalearn responses check` tells"
            ) from error
        raise
    finally:
        db.execute("DETACH other")
    return result


def _merge_part(db: sqlite3.Connection, after: int, end: int, result: Merged) -> None:
    part = [after, end]
    same, mended, different = db.execute(
        """
        SELECT coalesce(sum(same), 0), coalesce(sum(mended), 0),
               coalesce(sum(NOT same AND NOT mended), 0)
        FROM (SELECT (theirs.reasoning, theirs.text, theirs.finish_reason)
                     = (ours.reasoning, ours.text, ours.finish_reason) AS same,
                     ours.finish_reason = 'error' AND theirs.finish_reason != 'error' AS mended
              FROM other.responses theirs JOIN main.responses ours ON ours.key = theirs.key
              WHERE theirs.id > ? AND theirs.id <= ?)
        """,
        part,
    ).fetchone()
    db.execute(
        """
        DELETE FROM main.responses WHERE finish_reason = 'error' AND key IN (
            SELECT key FROM other.responses WHERE id > ? AND id <= ? AND finish_reason != 'error')
        """,
        part,
    )
    columns = f"sample, {CONTENT}, checksum"
    added = db.execute(
        f"""
        INSERT OR IGNORE INTO main.responses (key, model, prompt, settings, {columns})
        SELECT r.key,
               (SELECT id FROM main.models WHERE identity = m.identity),
               (SELECT id FROM main.prompts WHERE digest = p.digest),
               (SELECT id FROM main.settings WHERE json = s.json), {columns}
        FROM other.responses r JOIN other.models m ON m.id = r.model
        JOIN other.prompts p ON p.id = r.prompt JOIN other.settings s ON s.id = r.settings
        WHERE r.id > ? AND r.id <= ?
        """,  # noqa: S608 (columns are a constant)
        part,
    ).rowcount
    if added:
        db.execute(NEW_VERSION)
    result.added += added - mended
    result.mended += mended
    result.same += same
    result.different += different


# -- forgetting ----------------------------------------------------------------------------------


def forget_model(store: ResponseStore, name: str) -> int:
    """Delete the answers of a model, and what only they needed.

    Args:
        store: Loses the answers.
        name: A name, or a model's identity; the other names of its answers go too.

    Returns:
        Number of answers deleted.

    Raises:
        UserError: If there are none of that name, or some of several models.
    """
    groups = _of_one_model(store, name)
    deleted = 0
    with store.db:
        for group in groups:
            deleted += store.db.execute(
                "DELETE FROM responses WHERE model = ? AND settings = ?", group[:2]
            ).rowcount
        store.db.execute(NEW_VERSION)
        store.db.execute("UPDATE models SET name = identity WHERE name = ?", [name])
        for statement in UNUSED:
            store.db.execute(statement)
    store.db.execute("VACUUM")
    return deleted


def number_named(store: ResponseStore, name: str) -> int:
    """Count the answers that `forget_model` would delete.

    Args:
        store: Is left as it is.
        name: As for `forget_model`.

    Returns:
        Number of answers.

    Raises:
        UserError: As `forget_model`.
    """
    query = "SELECT count(*) FROM responses WHERE model = ? AND settings = ?"
    groups = _of_one_model(store, name)
    return sum(store.db.execute(query, group[:2]).fetchone()[0] for group in groups)


def _of_one_model(store: ResponseStore, name: str) -> list[Group]:
    groups = store.named(name)
    identities = dict.fromkeys(group.identity for group in groups)
    if len(identities) > 1:
        raise UserError(
            f"{store.path}: {name}: several models are called so; give one of "
            f"{', '.join(identities)}"
        )
    return groups


UNUSED = (
    "DELETE FROM names WHERE (model, settings) NOT IN (SELECT model, settings FROM responses)",
    "DELETE FROM models WHERE id NOT IN (SELECT model FROM responses)",
    "DELETE FROM settings WHERE id NOT IN (SELECT settings FROM responses)",
    "DELETE FROM prompts WHERE id NOT IN (SELECT prompt FROM responses)",
)
