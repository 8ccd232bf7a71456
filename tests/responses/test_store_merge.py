"""Protects joining and sharing stores: nothing is lost, doubled or seen half-written.

An answer takes the place of an error and never of an answer; a merge can be broken off, done again,
and done while others read and write either store. A file that is no store is refused and stays as
it is.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails
from helpers.stores import answer, assert_whole, failure, overwrite_root, put, requests, texts

from deltalearn.errors import UserError
from deltalearn.responses import maintenance
from deltalearn.responses.maintenance import Merged, merge
from deltalearn.responses.store import ResponseStore


def merged(path: Path, other: Path) -> Merged:
    with ResponseStore(path) as store:
        return merge(store, other)


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Ours and theirs; each question is named after what becomes of it."""
    both = "the same", "mended", "both failed", "other text", "cut here", "failed there"
    b = {r.prompt.id[6:]: r for r in requests("B", *both, "ours", "theirs")}
    s, thinks = requests("S", "the same", "new")[0], requests("S", "thinks")[0]
    ours = [
        answer(b["the same"], "same"), failure(b["mended"]), failure(b["both failed"]),
        answer(b["other text"], "mine"), answer(b["cut here"], "cut", "length"),
        answer(b["failed there"], "fine"), answer(thinks, "x", reasoning="<think>a</think>"),
        answer(b["ours"], "only ours"),
    ]  # fmt: skip
    theirs = [
        answer(s, "of another model"), answer(b["theirs"], "only theirs"),
        answer(b["failed there"], "", "error", error="no"), answer(b["cut here"], "cut"),
        answer(b["other text"], "yours"), failure(b["both failed"], error="never"),
        answer(b["mended"], "now", ids=(7,), seed=2**127, tries=3, reasoning="<think></think>"),
        answer(b["the same"], "same"), answer(thinks, "x", reasoning="<think>b</think>"),
    ]  # fmt: skip
    put(tmp_path / "ours.sqlite", *ours, B="large")
    put(tmp_path / "theirs.sqlite", *theirs, engine="engine 2", B="big", S="small")
    return tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"


@pytest.mark.parametrize("at_once", [1, 4, 20_000])
def test_a_merge_by_hand_whatever_it_takes_at_once(two, monkeypatch, at_once):
    monkeypatch.setattr(maintenance, "ROWS_PER_TRANSACTION", at_once)
    ours, theirs = two
    before = texts(theirs)
    # There are both: the same, both failed | mended | other text, cut here, failed there, thinks.
    assert merged(ours, theirs) == Merged(added=2, same=2, mended=1, different=4)
    assert texts(ours) == {
        ("large", "the same"): "same", ("large", "mended"): "now", ("large", "both failed"): "",
        ("large", "other text"): "mine", ("large", "cut here"): "cut",
        ("large", "failed there"): "fine", ("S", "thinks"): "x", ("large", "ours"): "only ours",
        ("large", "theirs"): "only theirs", ("S", "the same"): "of another model",
    }  # fmt: skip
    assert_whole(ours, 10)
    # Once more nothing happens, and the other store was read alone.
    assert merged(ours, theirs) == Merged(same=5, different=4)
    assert texts(theirs) == before


def test_a_merged_answer_is_the_whole_row_and_prompts_are_kept_once(two):
    ours, theirs = two
    request = requests("B", "mended")[0]
    with ResponseStore(theirs) as store:
        theirs_row = store.get([request.key])[request.key]
    merged(ours, theirs)
    with ResponseStore(ours) as store:
        assert store.get([request.key])[request.key] == theirs_row
        assert theirs_row.seed == 2**127 and theirs_row.tries == 3
        query = "SELECT engine FROM responses WHERE key = ?"
        assert store.db.execute(query, [request.key]).fetchone() == ("engine 2",)
        assert store.db.execute("SELECT count(*) FROM prompts").fetchone() == (9,)
        assert store.db.execute("SELECT count(*) FROM settings").fetchone() == (1,)


def test_merging_either_way_gives_the_same_requests(two, tmp_path):
    ours, theirs = two
    copies = [Path(shutil.copy(p, tmp_path / f"copy of {p.name}")) for p in two]
    merged(ours, theirs)
    merged(copies[1], copies[0])
    with ResponseStore(ours) as one, ResponseStore(copies[1]) as other:
        query = "SELECT key FROM responses ORDER BY key"
        assert one.db.execute(query).fetchall() == other.db.execute(query).fetchall()


def test_of_two_names_for_a_model_ours_stays_and_new_models_bring_theirs(two):
    ours, theirs = two
    put(theirs, answer(requests("T", "new")[0], "t"), T="tiny")
    merged(ours, theirs)
    with ResponseStore(ours) as store:
        names = dict(store.db.execute("SELECT identity, name FROM models"))
    assert names == {"B": "large", "S": "S", "T": "tiny"}


def test_a_merge_that_broke_off_is_finished_by_the_next(two, monkeypatch):
    ours, theirs = two
    monkeypatch.setattr(maintenance, "ROWS_PER_TRANSACTION", 2)
    whole, parts = maintenance._merge_part, []

    def dies(*arguments):
        parts.append(arguments)
        if len(parts) == 3:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(maintenance, "_merge_part", dies)
    with pytest.raises(KeyboardInterrupt):
        merged(ours, theirs)
    monkeypatch.setattr(maintenance, "_merge_part", whole)
    # Of theirs, four rows had been seen; the two that were to be added are there.
    assert merged(ours, theirs) == Merged(added=0, same=4, mended=1, different=4)
    assert_whole(ours, 10)


def test_a_store_with_itself(two):
    assert merged(two[0], two[0]) == Merged(same=8)
    assert_whole(two[0], 8)


@pytest.mark.slow
def test_what_is_no_store_is_refused_and_untouched(two, tmp_path):
    ours, theirs = two
    text, foreign, newer, empty = (tmp_path / n for n in ("text", "foreign", "newer", "empty"))
    text.write_text("no store\n" * 1000)
    empty.touch()
    db = sqlite3.connect(foreign)
    with db:
        db.execute("CREATE TABLE bookmarks (url)")
    db.close()
    shutil.copy(theirs, newer)
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version=9")
    db.close()
    for file, message in (
        (text, "not a response store"), (foreign, "not a response store"),
        (empty, "not a response store"), (newer, "another version"),
    ):  # fmt: skip
        before = file.read_bytes()
        fails(deltalearn("responses", "merge", ours, file), str(file), message)
        assert file.read_bytes() == before
    fails(deltalearn("responses", "merge", ours, tmp_path / "none"), "no response store here")
    fails(deltalearn("responses", "merge", tmp_path / "none", ours), "no response store here")
    with pytest.raises(UserError, match="not a response store; move it away"):
        ResponseStore(foreign)  # nor is it made one
    assert_whole(ours, 8)


def test_a_damaged_store_is_named_and_does_not_harm_ours(two):
    ours, theirs = two
    overwrite_root(theirs, "responses")
    with pytest.raises(UserError, match=r"theirs\.sqlite or .*ours\.sqlite: damaged"):
        merged(ours, theirs)
    assert_whole(ours, 8)


# -- several at the same store -------------------------------------------------------------------


def test_a_merge_while_others_write_theirs_and_read_ours(two):
    """It takes what is committed there; who reads ours goes on seeing what there was."""
    ours, theirs = two
    with ResponseStore(theirs) as writer, ResponseStore(ours) as reader:
        writer.db.execute("BEGIN IMMEDIATE")
        writer.db.execute("DELETE FROM responses")
        reader.db.execute("BEGIN")
        assert reader.count() == 8
        assert merged(ours, theirs).added == 2
        assert reader.count() == 8
        reader.db.rollback()
        assert reader.count() == 10
        writer.db.rollback()
    assert_whole(ours, 10)
    assert_whole(theirs, 9)


WRITER = """
import sys
from pathlib import Path
from deltalearn.responses.store import ResponseStore
from deltalearn.records import Prompt, Request, Response

with ResponseStore(Path(sys.argv[1])) as store:
    for batch in range(150):
        rows = []
        for i in range(20):
            key = f"{batch}.{i}"
            prompt = Prompt(key, ({"role": "user", "content": key},))
            rows.append((Request(key, prompt, 0, model="m"), Response(key, key, (i,), "stop", 1)))
        store.add(rows, engine=str(batch))
"""


def test_who_reads_while_another_process_writes_sees_whole_batches_alone(tmp_path):
    path = tmp_path / "store.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path])
    query = """
        SELECT r.engine, count(*), count(p.id), count(m.id) FROM responses r
        LEFT JOIN prompts p ON p.id = r.prompt LEFT JOIN models m ON m.id = r.model
        GROUP BY r.engine ORDER BY min(r.id)
    """
    seen = []
    with ResponseStore(path) as reader:
        while True:
            ended = writer.poll() is not None
            batches = reader.db.execute(query).fetchall()
            assert batches == [(str(i), 20, 20, 20) for i in range(len(batches))]
            seen.append(len(batches))
            if ended:
                break
    assert writer.returncode == 0
    assert seen == sorted(seen) and seen[-1] == 150
    assert len(set(seen)) > 5, "it was read while it was written"
