"""Protects the care of a store: its numbers, that no damage goes unseen, what is forgotten.

`check` finds each kind of damage that it claims to find, in as many rows as it hit; forgetting a
model takes nothing of another. Merging is in test_store_merge.py.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails
from helpers.stores import (
    SAMPLED,
    answer,
    assert_whole,
    failure,
    overwrite_root,
    put,
    requests,
    texts,
)

from deltalearn.responses.maintenance import Check, check, faults, forget_model, overview
from deltalearn.responses.store import ResponseStore


def altered(path: Path, *statements: str) -> Check:
    db = sqlite3.connect(path)
    with db:
        for statement in statements:
            assert db.execute(statement).rowcount > 0, "the alteration must hit something"
    db.close()
    with ResponseStore(path, existing=True) as store:
        return check(store)


@pytest.fixture
def path(tmp_path) -> Path:
    """Two models: the one greedy, with a cut answer and an error, and sampled; the other served."""
    big, small = requests("B", "q1", "q2", "q3"), requests("S", "q1", "q2", system="be brief")
    twice = requests("B", "q1", sampling=SAMPLED, samples=2)
    put(
        tmp_path / "store.sqlite", answer(big[0], "ab"), answer(big[1], "cde", "length"),
        failure(big[2]), answer(twice[0], "f"), answer(twice[1], "ghij"), B="large",
    )  # fmt: skip
    served = [answer(r, "klm", ids=(), completion_tokens=7) for r in small]
    return put(tmp_path / "store.sqlite", *served, engine="openai", S="small")


def test_overview_by_hand(path):
    with ResponseStore(path) as store:
        rows = [tuple(row.values()) for row in overview(store)]
    # model, identity, settings, responses, prompts, truncated, errors, tokens, engines
    assert rows == [
        ("large", "B", '{"max_tokens":9,"seed":0,"temperature":1.0,"top_p":1.0}',
         2, 1, 0, 0, 1 + 4, "engine 1"),
        ("large", "B", '{"max_tokens":9}', 3, 3, 1, 1, 2 + 3, "engine 1"),
        ("small", "S", '{"max_tokens":9,"system":"be brief"}', 2, 2, 0, 0, 2 * 7, "openai"),
    ]  # fmt: skip
    listed = deltalearn("responses", "count", path).stdout.splitlines()
    assert listed == ["responses 7", "truncated 1", "errors 1"]


def test_faults_are_counted_by_model_and_kind_with_an_example(path):
    more = requests("S", "q4", "q5", "q6")
    put(path, *(failure(r, "server", "status 500") for r in more[:2]), failure(more[2]))
    with ResponseStore(path) as store:
        first, *others = faults(store)
    assert first == ("small", "server", 2, "status 500"), "the most frequent comes first"
    assert sorted(others) == [("large", "refused", 1, "no"), ("small", "refused", 1, "no")]


# -- check ---------------------------------------------------------------------------------------


def test_a_store_as_it_was_written_is_whole(path):
    assert_whole(path, 7)
    assert deltalearn("responses", "check", path).stdout == "7 rows, all whole\n"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        # q1 was asked of B greedily and sampled twice, and of S.
        ("UPDATE prompts SET messages = replace(messages, 'q1', 'q9')", {"prompt": 4}),
        ("UPDATE prompts SET messages = substr(messages, 1, 20) WHERE id = 3", {"torn": 1}),
        ("UPDATE settings SET json = '[' WHERE json LIKE '%brief%'", {"torn": 2}),
        ("UPDATE settings SET json = replace(json, '9', '8')", {"key": 7}),
        ("UPDATE settings SET json = replace(json, 'brief', 'short')", {"key": 2}),
        ("UPDATE models SET identity = 'C' WHERE identity = 'B'", {"key": 5}),
        ("UPDATE responses SET model = 2 WHERE engine = 'engine 1'", {"key": 5}),
        ("UPDATE responses SET prompt = 2 WHERE prompt = 3", {"key": 1}),
        ("UPDATE responses SET sample = 7 WHERE sample = 1", {"key": 1}),
        ("UPDATE responses SET key = 'x' || substr(key, 2) WHERE id = 1", {"key": 1}),
        ("UPDATE responses SET token_ids = x'0102030405' WHERE id < 3", {"answer": 2}),
        ("UPDATE responses SET text = 'abc' WHERE text = 'ab'", {"answer": 1}),
        ("UPDATE responses SET reasoning = ' ' WHERE engine = 'openai'", {"answer": 2}),
        ("UPDATE responses SET finish_reason = 'stop' WHERE error NOTNULL", {"answer": 1}),
        ("UPDATE responses SET error = NULL, fault = NULL", {"answer": 1}),
        ("UPDATE responses SET checksum = x'00'", {"answer": 7}),
        ("DELETE FROM models WHERE identity = 'S'", {"orphan": 2}),
        ("DELETE FROM prompts WHERE messages LIKE '%q1%'", {"orphan": 4}),
        ("DELETE FROM settings WHERE json LIKE '%seed%'", {"orphan": 2}),
    ],
)
def test_an_alteration_is_found_in_as_many_rows_as_it_hit(path, statement, found):
    result = altered(path, statement)
    assert (dict(result.counts), result.rows) == (found, 7)
    assert len(result.problems) == min(3, sum(found.values())), "the first of a kind are shown"


def test_several_kinds_of_damage_are_told_apart_with_an_exit_code(path):
    altered(
        path,
        "UPDATE responses SET token_ids = x'01', text = '' WHERE id = 1",
        "UPDATE models SET identity = 'T' WHERE identity = 'S'",
    )
    result = deltalearn("responses", "check", path)
    assert result.returncode == 1
    assert result.stdout.endswith("7 rows, NOT whole: answer 1, key 2\n")


@pytest.fixture
def many(tmp_path) -> Path:
    """A store of several hundred pages."""
    answers = [answer(r, "x" * 900) for r in requests("B", *(f"number {i:03}" for i in range(400)))]
    return put(tmp_path / "many.sqlite", *answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"), [("responses", 0), ("responses_by_model", 400), ("prompts", 0)]
)
def test_a_damaged_page_is_reported_by_check_and_by_whoever_meets_it(many, tmp_path, name, read):
    overwrite_root(many, name)
    with ResponseStore(many) as store:
        found = check(store)
    assert found.counts["pages"] > 0 and found.rows == read
    assert deltalearn("responses", "check", many).returncode == 1
    exported = deltalearn("responses", "export", many, tmp_path / "all.jsonl")
    if read:  # only the index is lost
        assert exported.returncode == 0
    else:
        fails(exported, "many.sqlite: damaged", "deltalearn responses check")
        assert not (tmp_path / "all.jsonl").exists()


def test_a_key_that_was_changed_in_a_row_or_in_its_index_alone(many):
    content = many.read_bytes()
    key = requests("B", "number 123")[0].key.encode()
    places = content.find(key), content.rfind(key)
    assert content.count(key) == 2
    found = []
    for place in places:
        many.write_bytes(content[:place] + b"x" + content[place + 1 :])
        with ResponseStore(many) as store:
            found.append(check(store))
    kinds = [set(result.counts) for result in found]
    assert {"pages"} in kinds and {"pages", "key"} in kinds
    for result in found:
        assert result.rows == 400
        assert any("missing from index" in problem for problem in result.problems)


def test_a_letter_changed_in_the_file_is_found_although_its_pages_are_sound(many):
    content = many.read_bytes()
    for old, new, kind in (
        (b'"number 123"', b'"number 124"', "prompt"), (b"x" * 300, b"y" + b"x" * 299, "answer"),
    ):  # fmt: skip
        assert old in content
        many.write_bytes(content.replace(old, new, 1))
        with ResponseStore(many) as store:
            found = check(store)
        assert dict(found.counts) == {kind: 1}


# -- forget --------------------------------------------------------------------------------------


def forgotten(path: Path, name: str) -> int:
    with ResponseStore(path, existing=True) as store:
        return forget_model(store, name)


def contents(path: Path) -> dict[str, list[tuple]]:
    db = sqlite3.connect(path)
    tables = ("models", "prompts", "settings", "responses")
    found = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608
    db.close()
    return found


@pytest.mark.parametrize("called", ["large", "B"])
def test_forgetting_takes_the_model_and_what_only_it_needed(path, called):
    before = contents(path)
    assert forgotten(path, called) == 5
    after = contents(path)
    assert [row[1:] for row in after["models"]] == [("S", "small")]
    assert [row for row in before["responses"] if row[2] == after["models"][0][0]] == after[
        "responses"
    ]
    assert [row[2] for row in after["prompts"]] == [
        f'[{{"content":"q{i}","role":"user"}}]' for i in (1, 2)
    ], "S was asked these too, nobody else was asked q3"
    assert [row[1] for row in after["settings"]] == ['{"max_tokens":9,"system":"be brief"}']
    assert_whole(path, 2)


def test_what_is_forgotten_is_not_in_the_file_any_more(many):
    put(many, answer(requests("S", "number 007", "only of S")[1], "to stay"))
    size = many.stat().st_size
    assert forgotten(many, "B") == 400
    content = many.read_bytes()
    assert len(content) < size / 5
    assert b"xxx" not in content and b"number" not in content
    assert b"to stay" in content and b"only of S" in content
    assert_whole(many, 1)


def test_a_forgotten_model_can_be_asked_again(path):
    before = texts(path)
    forgotten(path, "small")
    put(path, *(answer(r, "klm") for r in requests("S", "q1", "q2", system="be brief")), S="small")
    assert texts(path) == before


def test_a_name_of_two_models_or_of_none_deletes_nothing(path):
    put(path, answer(requests("T", "q1")[0], "t"), T="small")
    before = contents(path)
    for name, message in (("small", "give one of S, T"), ("tiny", "it has large, small")):
        fails(deltalearn("responses", "forget", path, name, "--yes"), name, message)
    assert contents(path) == before
    assert forgotten(path, "T") == 1
    assert forgotten(path, "small") == 2, "the name is unambiguous now"
