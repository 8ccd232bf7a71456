"""Protects whoever waits for a file that another holds: signals are heard and nothing is lost."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.stores import answer, put, requests

from deltalearn.responses.store import ResponseStore
from deltalearn.util import sqlite
from deltalearn.util.kvstore import KeyValueStore
from deltalearn.util.sqlite import open_sqlite

SOON = 0.3  # seconds until the signal


class Pressed(KeyboardInterrupt):
    """What a signal raises here."""


@pytest.fixture(autouse=True)
def for_ever(monkeypatch):
    """Who hears no signal never comes back."""
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 1e9)


@contextmanager
def signalled(act):
    """Within the block a signal comes, upon which `act` is called."""
    before = signal.signal(signal.SIGALRM, lambda *_: act())
    signal.setitimer(signal.ITIMER_REAL, SOON)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def press() -> None:
    raise Pressed


@contextmanager
def held(path: Path):
    """Another process, as it were, is writing to the file."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield holder
    finally:
        holder.close()


def add_to_values(folder: Path):
    KeyValueStore(folder / "store.sqlite", "things").add({"a": 1})
    store = KeyValueStore(folder / "store.sqlite", "things")
    return folder / "store.sqlite", lambda: store.add({"b": 2}), lambda: store.get(["a", "b"])


def add_to_responses(folder: Path):
    one, other = requests("m", "q 1", "q 2")
    path = put(folder / "responses.sqlite", answer(one, "a"))
    store = ResponseStore(path)
    add = [answer(other, "b")[:2]]
    return (
        path,
        lambda: store.add(add, engine="e"),
        lambda: store.db.execute("SELECT text FROM responses").fetchall(),
    )


def make_a_store(folder: Path):
    KeyValueStore(folder / "store.sqlite", "others").close()
    (folder / "new.sqlite").touch()
    path = folder / "new.sqlite"
    return (
        path,
        lambda: KeyValueStore(path, "things"),
        lambda: open_sqlite(path).execute("PRAGMA user_version").fetchall(),
    )


@pytest.mark.parametrize("kind", [add_to_values, add_to_responses, make_a_store])
def test_a_wait_is_interrupted_and_nothing_is_written(kind, tmp_path):
    path, write, read = kind(tmp_path)
    before = read()
    with held(path), signalled(press), pytest.raises(Pressed):
        write()
    assert read() == before
    write()
    assert read() != before


@pytest.mark.parametrize("kind", [add_to_values, add_to_responses, make_a_store])
def test_a_signal_that_only_asks_does_not_end_a_wait(kind, tmp_path):
    """The first Ctrl-C: what is in flight is finished, once the other process lets go."""
    path, write, read = kind(tmp_path)
    before = read()
    with held(path) as holder, signalled(lambda: holder.execute("ROLLBACK")):
        write()
    assert read() != before


def test_a_group_from_an_iterator_is_whole_after_a_wait(tmp_path):
    database = open_sqlite(tmp_path / "x.sqlite")
    database.execute("CREATE TABLE t (x)")
    database.commit()
    with held(tmp_path / "x.sqlite") as holder, signalled(lambda: holder.execute("ROLLBACK")):
        database.executemany("INSERT INTO t VALUES (?)", ((i,) for i in range(5)))
    database.commit()
    assert database.execute("SELECT count(*), sum(x) FROM t").fetchone() == (5, 10)


def test_other_errors_are_not_waited_for(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        open_sqlite(tmp_path / "x.sqlite").execute("SELECT * FROM t")
