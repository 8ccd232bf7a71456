"""Protects answers on their way out of a store and into one: nothing altered, nothing half taken.

What is exported comes back as it was, whatever the texts hold; a row that was altered on its way is
refused. Answers of other tools are in test_import_shapes.py.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn, fails
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.records import Prompt, Response, Sampling
from deltalearn.responses.export import export
from deltalearn.responses.importer import import_responses
from deltalearn.responses.maintenance import check
from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore

FORMATS = (".jsonl", ".parquet")
COLUMNS = [
    "model", "messages", "response", "reasoning", "finish_reason", "error", "fault",
    "prompt_id", "sample", "prompt_tokens", "completion_tokens", "token_ids", "seconds",
    "seed", "tries", "engine", "identity", "settings", "key",
]  # fmt: skip


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def store_of(*stores: list[tuple]) -> ResponseStore:
    """A store in memory, of answered requests by engine."""
    store = ResponseStore(Path(":memory:"))
    for i, answered in enumerate(stores):
        store.add(answered, engine=f"engine {i}")
    return store


def everything(store: ResponseStore) -> list[tuple]:
    """All that is known of each answer, but when it came."""
    query = """
        SELECT r.key, m.identity, m.name, p.messages, s.json, r.sample, r.prompt_id, r.engine,
               r.seconds
        FROM responses r JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt
        JOIN settings s ON s.id = r.settings ORDER BY r.id
    """
    rows = store.db.execute(query).fetchall()
    found = store.get(row[0] for row in rows)
    return [(*row, found[row[0]]) for row in rows]


# -- out and back in -----------------------------------------------------------------------------

HOSTILE = [
    "".join(map(chr, range(0x21))) + "\x7f\x85\u2028\u2029\ufeff\ufffe",
    "\r\n\n\r", '"}\n{"response": "forged"}\n', "\x00", "NULL", "", " \t", "\\u0000 \\n",
    "'); DROP TABLE responses; --", "\x1b[2J\x1b]0;title\x07", "e\u0301 👩‍👩‍👧 שלום \u202e",
    "<|im_end|></s>",
    "long " * 600_000,
]  # fmt: skip


@pytest.fixture
def full() -> ResponseStore:
    """Two models, hostile texts in every place for text, and each kind of answer."""
    talks = [
        (turn("system", text), turn("user", "a" + text), turn("assistant", text), turn("user", "b"))
        for text in HOSTILE
    ]
    named = [f"{i} {text[:99]}" for i, text in enumerate(HOSTILE)]
    prompts = [Prompt(*both) for both in zip(named, talks, strict=True)]
    greedy = list(RequestPlan("fingerprint", prompts, Settings(Sampling(0, 1, 5))))
    sampled = Settings(Sampling(0.7, 0.9, 5), seed=3, samples=2, system='a "system"\n')
    a, b = RequestPlan("served:x", [Prompt("p", (turn("user", "q"),))], sampled)
    local = [
        (r, Response(r.key, t, (i, 2**32 - 1), "stop", i, reasoning=t, seconds=0.1 + i))
        for i, (r, t) in enumerate(zip(greedy, HOSTILE, strict=True))
    ]
    cut = Response(a.key, "cut", (), "length", 7, completion_tokens=9, seed=2**128 - 1, tries=4)
    bad = Response(b.key, "", (), "error", 0, HOSTILE[0], completion_tokens=0, fault="refused")
    store = store_of(local, [(a, cut), (b, bad)])
    store.name_model("fingerprint", "larger")
    return store


@pytest.mark.parametrize("kind", FORMATS)
def test_what_goes_out_comes_back_as_it_was(full, tmp_path, kind):
    file = tmp_path / f"all{kind}"
    assert export(full, file) == len(HOSTILE) + 2
    with store_of() as back:
        found = import_responses(back, str(file))
        assert everything(back) == everything(full)
        assert check(back).problems == []
        assert found.models == {"larger": len(HOSTILE), "served:x": 2}
        assert (found.added, found.skipped_count, found.assumed_ends) == (len(HOSTILE) + 2, 0, 0)
        export(back, tmp_path / f"again{kind}")
        again = import_responses(back, str(file))
        assert (again.added, again.there, dict(again.models)) == (0, len(HOSTILE) + 2, {})
    assert file.read_bytes() == (tmp_path / f"again{kind}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file is left"


def test_columns_are_the_same_in_both_formats_and_rows_stand_in_lines(full, tmp_path):
    for kind in FORMATS:
        export(full, tmp_path / f"all{kind}")
    lines = (tmp_path / "all.jsonl").read_bytes().removesuffix(b"\n").split(b"\n")
    rows = [json.loads(line) for line in lines]
    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == rows
    assert all(list(row) == COLUMNS for row in rows)
    local, cut, bad = rows[1], *rows[-2:]
    assert local["completion_tokens"] == len(local["token_ids"]) == 2
    assert (cut["completion_tokens"], cut["seed"]) == (9, str(2**128 - 1)), "no JSON number is safe"
    assert (bad["response"], bad["finish_reason"], bad["fault"]) == ("", "error", "refused")
    assert bad["messages"] == [turn("user", "q")], "the settings' system turn is in `settings`"


ANY_TEXT = st.text(st.characters(codec="utf-8"))


@settings(max_examples=40)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=4), st.sampled_from(FORMATS))
def test_any_text_comes_back(texts, kind):
    prompts = [Prompt(q, (turn("user", f"{i}{q}"),)) for i, (q, _) in enumerate(texts)]
    plan = RequestPlan("m", prompts, Settings(Sampling(0, 1, 5)))
    answered = [
        (r, Response(r.key, t, (), "stop", 0, reasoning=t))
        for r, (_, t) in zip(plan, texts, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder, store_of(answered) as store, store_of() as back:
        file = Path(folder) / f"all{kind}"
        export(store, file)
        import_responses(back, str(file))
        assert everything(back) == everything(store)


@pytest.mark.parametrize("kind", FORMATS)
def test_some_models_alone_or_nothing_at_all(full, tmp_path, kind):
    file = tmp_path / f"some{kind}"
    assert export(full, file, ["larger"]) == len(HOSTILE)
    assert export(full, file, ["fingerprint"]) == len(HOSTILE), "by its identity"
    assert export(full, file, ["served:x"]) == 2
    assert export(full, file, ["larger", "served:x"]) == len(HOSTILE) + 2
    with pytest.raises(UserError, match="no model 'large'; it has larger, served:x"):
        export(full, file, ["larger", "large"])
    assert export(store_of(), file) == 0
    with pytest.raises(UserError, match="no answers to import in 0 rows"):
        import_responses(store_of(), str(file))
    with pytest.raises(UserError, match=r"a \.jsonl or a \.parquet file"):
        export(full, tmp_path / "all.csv")


def test_an_export_of_an_earlier_version_is_read(write_lines):
    row = exported(reasoning="<think>hm</think>")
    now = [row["key"]]
    row["how"], row["thought"] = row.pop("settings"), row.pop("reasoning")
    with store_of() as store:
        assert import_responses(store, str(write_lines([row]))).added == 1
        assert store.get(now)[row["key"]].reasoning == "<think>hm</think>"
        assert check(store).problems == []


def exported(**changes: Any) -> dict[str, Any]:
    """A sampled answer as `export` writes it, with changes."""
    plan = RequestPlan("m", [Prompt("p", (turn("user", "q"),))], Settings(Sampling(1, 1, 5)))
    row = dict.fromkeys(COLUMNS) | {
        "model": "name", "messages": [turn("user", "q")], "response": "a", "reasoning": "",
        "finish_reason": "stop", "prompt_id": "p", "sample": 0, "prompt_tokens": 3,
        "completion_tokens": 2, "token_ids": [1, 2], "seconds": 0.5, "seed": "7", "tries": 1,
        "engine": "e", "identity": "m", "settings": plan.settings.key(),
        "key": next(iter(plan)).key,
    }  # fmt: skip
    return row | changes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.sampled_from(COLUMNS), JSON)
@pytest.mark.slow
def test_an_altered_row_is_refused_or_leaves_a_whole_store(column, value):
    """Whatever was done to a row, it is not an exception, and neither is its neighbour lost."""
    other = exported(messages=[turn("user", "other")], key="")
    plan = RequestPlan("m", [Prompt("p", (turn("user", "other"),))], Settings(Sampling(1, 1, 5)))
    other["key"] = next(iter(plan)).key
    with tempfile.TemporaryDirectory() as folder, store_of() as store:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in (exported(**{column: value}), other)))
        found = import_responses(store, str(file))
        assert found.added + found.skipped_count == 2 and found.added >= 1
        assert (check(store).rows, check(store).problems) == (found.added, [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": [turn("user", "r")]}, "altered"),
        ({"identity": "n"}, "altered"),
        ({"sample": 1}, "altered"),
        ({"settings": '{"max_tokens":6,"temperature":1,"top_p":1}'}, "altered"),
        ({"settings": "{"}, "not as it was exported"),
        ({"finish_reason": "end"}, "'end' with error None"),
        ({"finish_reason": "error"}, "'error' with error None"),
        ({"token_ids": [-1]}, "not as it was exported"),
        ({"prompt_tokens": None}, "prompt_tokens is None"),
        ({"prompt_tokens": 2**63}, "prompt_tokens is 9223372036854775808"),
        ({"tries": -1}, "tries is -1"),
    ],
)
def test_what_cannot_be_what_was_exported_is_told(changes, reason, write_lines):
    file = write_lines([exported(**changes), exported()])
    with store_of() as store:
        found = import_responses(store, str(file))
        assert (found.added, found.skipped_count) == (1, 1)
        assert found.skipped[0].startswith(f"{file}:1: ") and reason in found.skipped[0]


# -- files and the command ------------------------------------------------------------------------


def test_what_is_in_no_known_shape_says_what_is_known(write_lines, tmp_path):
    file = write_lines([{"frage": "q", "antwort": "a"}] * 2)
    refused = deltalearn("responses", "import", tmp_path / "s.sqlite", file)
    fails(refused, "no answers to import in 2 rows", f"{file}:1: no answer in a known shape")
    fails(refused, "has frage, antwort", "known are an answer a row (prompt, response", "--column")
    for content, message in (
        (b'{\n"prompt": "q"}', "must hold an array of rows"),
        (b"[1, ", "not JSON"),
        (b'[{"prompt": "q", "response": "\\ud800", "model": "A"}, 5]', "row 1: not text"),
    ):
        array = tmp_path / "array.json"
        array.write_bytes(content)
        with store_of() as store, pytest.raises(UserError, match=message):
            import_responses(store, str(array))
    with store_of() as store, pytest.raises(UserError, match="has no effect"):
        import_responses(store, str(array), split="test")


def test_a_prompt_keeps_the_id_that_the_file_gives_it(write_lines):
    ids = [{"id": 7}, {"prompt_id": "p", "id": "i"}, {"id": [1]}]
    rows = [
        {"prompt": f"q{i}", "response": "a", "model": "A", **given} for i, given in enumerate(ids)
    ]
    with store_of() as store:
        import_responses(store, str(write_lines(rows)))
        query = "SELECT prompt_id, substr(key, 1, 16) FROM responses ORDER BY id"
        (first, _), (second, _), (third, key) = store.db.execute(query)
    assert (first, second, third) == ("7", "p", key)


@pytest.mark.slow
def test_the_command_says_what_became_of_the_rows(write_lines, tmp_path):
    rows = [{"prompt": "q", "3B": "a", "1B": "b"}, {"prompt": "q"}]
    command = [
        "responses",
        "import",
        tmp_path,
        write_lines(rows),
        "--column",
        "3B",
        "--column",
        "1B",
    ]
    first, again = deltalearn(*command).stdout, deltalearn(*command).stdout
    assert first.startswith("2 rows read, 2 answers added (3B 1, 1B 1)\n")
    assert "  2 had no finish reason and are taken to have ended by themselves\n" in first
    assert (
        "  1 rows or cells had no answer to take\n" in first
        and "rows.jsonl:2: no column '3B'" in first
    )
    assert again.startswith("2 rows read, 0 answers added (none new)\n")
    assert "  2 were there already\n" in again
