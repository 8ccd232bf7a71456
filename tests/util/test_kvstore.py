"""Protects what is dear: a stored value is found again, whatever ends a process, and every fault
of the file names it with its remedy.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from deltalearn.errors import UserError, is_disk_full
from deltalearn.util import kvstore, sqlite
from deltalearn.util.kvstore import KeyValueStore


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "store.sqlite"


@pytest.fixture
def store(path):
    opened = KeyValueStore(path, "things")
    yield opened
    opened.close()


def test_what_is_stored_is_found_by_its_key(store, path):
    values = {f"key {i}": f"value {i}" for i in range(3 * kvstore.BATCH_SIZE)}
    store.add(values)
    store.add({b"\x00\xff": 0.1, "key 1": "newer"})
    other = KeyValueStore(path, "things")
    assert other.get([*values, "absent", b"\x00\xff"]) == {
        **values, "key 1": "newer", b"\x00\xff": 0.1
    }  # fmt: skip
    other.close()


def test_a_group_is_stored_whole_or_not_at_all(store):
    with pytest.raises(sqlite3.Error):
        store.add({"first": "kept?", "second": None})
    assert store.get(["first"]) == {}


def test_a_kill_loses_no_finished_group(path):
    """One process adds until it is killed; what it said was stored is there, and the file works."""
    code = (
        "import sys; from pathlib import Path; from deltalearn.util.kvstore import KeyValueStore\n"
        "store = KeyValueStore(Path(sys.argv[1]), 'things')\n"
        "for i in range(10**9):\n"
        "    store.add({f'{i} {j}': 'x' * 500 for j in range(20)}); print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    said = [int(process.stdout.readline()) for _ in range(50)]
    process.kill()
    rest = process.stdout.read().split(b"\n")[:-1]
    process.wait()
    done = [*said, *map(int, rest)]
    store = KeyValueStore(path, "things")
    assert len(store.get(f"{i} {j}" for i in done for j in range(20))) == 20 * len(done)
    started = store.get(f"{done[-1] + 1} {j}" for j in range(20))
    assert len(started) in (0, 20)
    store.add({"after": "it"})


def test_two_may_write_at_the_same_time(store, path):
    other = KeyValueStore(path, "things")
    store.add({"a": "1"})
    other.add({"b": "2"})
    assert store.get("ab") == other.get("ab") == {"a": "1", "b": "2"}
    other.close()


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    KeyValueStore(tmp_path / "things", "things").close()
    database = sqlite3.connect(tmp_path / "database")
    database.execute("CREATE TABLE responses (id)")
    database.commit()
    (tmp_path / "text").write_text("no database" * 100)
    for name in ("things", "database", "text"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name}.*other things.*move it away"):
            KeyValueStore(tmp_path / name, "other things")
        assert (tmp_path / name).read_bytes() == before


def test_a_damaged_file_is_named(store, path):
    store.add({str(i): "x" * 1000 for i in range(500)})
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:-4096] = b"\x99" * (len(content) - 8192)
    path.write_bytes(content)
    broken = KeyValueStore(path, "things")
    with pytest.raises(UserError, match=r"store\.sqlite.*damaged; move it away"):
        broken.get(map(str, range(500)))
    broken.close()


def test_a_full_disk_ends_the_run_and_keeps_what_was_stored(store):
    store.add({"first": "kept"})
    store._db.execute("PRAGMA max_page_count=3")
    with pytest.raises(OSError, match=r"store\.sqlite") as full:
        store.add({"second": "x" * 100_000})
    assert is_disk_full(full.value) and not isinstance(full.value, UserError)
    assert store.get(["first", "second"]) == {"first": "kept"}


def test_what_cannot_be_written_says_so(store, tmp_path):
    store._db.execute("PRAGMA query_only=1")
    with pytest.raises(UserError, match="make the file and its folder writable"):
        store.add({"a": "1"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        KeyValueStore(tmp_path / "file" / "store", "things")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError):
            KeyValueStore(tmp_path / "closed" / "store", "things")


def test_who_waits_in_vain_is_told(path, monkeypatch):
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.05)
    store = KeyValueStore(path, "things")
    holder = sqlite3.connect(path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="another process"):
        store.add({"a": "1"})
    holder.close()
    store.close()
