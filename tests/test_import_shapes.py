"""Protects answers that other tools wrote: found by the columns of these tools, never half taken.

Each shape is read to the last turn of its prompt; what would make another question or another
answer of a row is skipped instead, counted with its place and a reason, and leaves no trace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltalearn.generate.importer import Imported, import_responses
from deltalearn.generate.store import ResponseStore
from deltalearn.generate.upkeep import check
from deltalearn.pairs import write_pairs
from deltalearn.records import Pair, Response


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


Q = [user("q")]
TALK = [system("s"), user("q"), assistant("a0"), user("r")]

# Rows as the tools write them, options, and the answers: model, prompt, text, finish reason.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple]]] = {
    "ladder": (
        {"id": 7, "prompt": "q", "3B": "long", "1B": [assistant("short")], "0.5B": None, "x": 1},
        {"models": ["3B", "1B", "0.5B"]},
        [("3B", Q, "long", "stop"), ("1B", Q, "short", "stop")],
    ),
    "AlpacaEval": (
        {"dataset": "helpful_base", "instruction": "q", "output": "a", "generator": "G"},
        {},
        [("G", Q, "a", "stop")],
    ),
    "AlpacaEval, old": (
        {"instruction": "q", "input": "", "output": "a", "generator": "G", "datasplit": "eval"},
        {},
        [("G", Q, "a", "stop")],
    ),
    "TRL": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {},
        [("chosen", Q, "a", "stop"), ("rejected", Q, "b", "stop")],
    ),
    "TRL, conversational": (
        {"prompt": TALK, "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {},
        [("chosen", TALK, "a", "stop"), ("rejected", TALK, "b", "stop")],
    ),
    "TRL, implicit prompt": (
        {"chosen": [*TALK, assistant("a")], "rejected": [*TALK, assistant("b")]},
        {},
        [("chosen", TALK, "a", "stop"), ("rejected", TALK, "b", "stop")],
    ),
    "UltraFeedback binarized": (
        {
            "prompt": "q", "prompt_id": "u", "chosen": [*Q, assistant("a")],
            "rejected": [*Q, assistant("b")], "messages": [*Q, assistant("a")], "score_chosen": 8.5,
        },
        {},
        [("chosen", Q, "a", "stop"), ("rejected", Q, "b", "stop")],
    ),
    "first question, then the whole dialogue": (
        {
            "prompt": "q",
            "chosen": [*TALK[1:], assistant("a")],
            "rejected": [*TALK[1:], assistant("b")],
        },
        {},
        [("chosen", TALK[1:], "a", "stop"), ("rejected", TALK[1:], "b", "stop")],
    ),
    "Argilla": (
        {
            "instruction": "q", "chosen_response": "a", "rejected_response": "b",
            "chosen_model": "A", "rejected_model": "B", "chosen_avg_rating": 4.5,
        },
        {},
        [("A", Q, "a", "stop"), ("B", Q, "b", "stop")],
    ),
    "Argilla, with a dash": (
        {"prompt": "q", "chosen": [*Q, assistant("a")], "rejected": [*Q, assistant("b")],
         "chosen-model": "A", "rejected-model": "B"},
        {},
        [("A", Q, "a", "stop"), ("B", Q, "b", "stop")],
    ),
    "Orca pairs": (
        {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
        {},
        [("chosen", TALK[:2], "a", "stop"), ("rejected", TALK[:2], "b", "stop")],
    ),
    "distilabel": (
        {"instruction": "q", "generations": ["a", None, "c"], "generation_models": ["A", "B", "C"],
         "system_prompt": "s"},
        {},
        [("A", TALK[:2], "a", "stop"), ("C", TALK[:2], "c", "stop")],
    ),
    "distilabel, one model": (
        {"instruction": "q", "generations": ["a", "b"], "model_name": "A"},
        {},
        [("A", Q, "a", "stop"), ("A", Q, "b", "stop")],
    ),
    "distilabel, one generation": (
        {"instruction": "q", "generation": "a", "model_name": "A", "system_prompt": None},
        {},
        [("A", Q, "a", "stop")],
    ),
    "UltraFeedback": (
        {
            "source": "x", "instruction": "q", "models": ["A", "B"],
            "completions": [
                {"model": "A", "response": "a", "overall_score": 7},
                {"model": "B", "response": "b", "overall_score": 8},
            ],
        },
        {},
        [("A", Q, "a", "stop"), ("B", Q, "b", "stop")],
    ),
    "plain": (
        {"prompt": "q", "response": "a", "model": "A", "finish_reason": "length", "sample": 4},
        {},
        [("A", Q, "a", "length")],
    ),
    "plain, the model named by hand": (
        {"messages": TALK, "completion": "a"},
        {"name": "A"},
        [("A", TALK, "a", "stop")],
    ),
    "chat log": (
        {"messages": [*TALK, assistant("a")], "model": "A", "finish_reason": "length"},
        {},
        [("A", TALK, "a", "length")],
    ),
    "thoughts": (
        {"prompt": "q", "response": "<think>hm</think>\n\na", "model": "A"},
        {},
        [("A", Q, "a", "stop")],
    ),
    "a thought that was cut": (
        {"prompt": "q", "response": "<think>hm", "model": "A"},
        {},
        [("A", Q, "", "length")],
    ),
}  # fmt: skip


def answers(store: ResponseStore) -> list[tuple]:
    query = """
        SELECT m.name, p.messages, r.text, r.finish_reason FROM responses r
        JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt ORDER BY r.id
    """
    assert check(store).problems == []
    return [(m, json.loads(p), *rest) for m, p, *rest in store.db.execute(query)]


def taken(file: Path, **options: Any) -> tuple[list[tuple], Imported]:
    with ResponseStore(Path(":memory:")) as store:
        found = import_responses(store, str(file), **options)
        assert found.added == len(answers(store)) == sum(found.models.values())
        again = import_responses(store, str(file), **options)
        assert (again.added, again.there) == (0, found.added + found.there), "nothing twice"
        return answers(store), found


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_read(shape, write_lines, tmp_path):
    row, options, expected = SHAPES[shape]
    found, counts = taken(write_lines([row]), **options)
    assert found == expected
    ended = sum(answer[3] == "stop" for answer in expected)
    assert counts.assumed_ends == (0 if "finish_reason" in row else ended)
    # The same from a table, in which a column without values has the type null.
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row]), table)
    assert taken(table, **options)[0] == expected
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([row], indent=1), encoding="utf-8-sig")
    assert taken(array, **options)[0] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "model": "A"}, "no answer in a known shape; the row has prompt, model"),
        ({"response": "a", "model": "A"}, "no prompt; the row has response, model"),
        ({"prompt": "q", "response": "a"}, "does not name its model; give --model-name"),
        ({"prompt": " ", "response": "a", "model": "A"}, "message 0 is empty"),
        ({"prompt": "q", "response": ["a"], "model": "A"}, "must be text or messages, not list"),
        ({"prompt": "q", "response": "", "model": "A", "finish_reason": "error"}, "'error'; known"),
        ({"messages": [assistant("a")], "response": "b", "model": "A"}, "messages has no question"),
        ({"messages": [*TALK[:3], assistant("a")], "model": "A"}, "must be the user's"),
        ({"prompt": [user("q"), system("s")], "response": "a", "model": "A"}, "must be the user's"),
        # Half of a question, as Alpaca and Dolly have it, is another question.
        ({"instruction": "Translate", "input": "Haus", "output": "house"}, "instruction and input"),
        ({"instruction": "q", "context": "c", "response": "a"}, "instruction and context"),
        # A side that cannot be read takes the other with it.
        ({"prompt": "q", "chosen": "a", "rejected": {"text": "b"}}, "not dict"),
        ({"prompt": "q", "chosen": "a", "rejected": [user("b")]}, "must be text or messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rejected_finish_reason": "?"}, "'?'"),
        ({"chosen": "a", "rejected": "b"}, "no prompt, and chosen and rejected hold none"),
        (
            {"chosen": [*Q, assistant("a")], "rejected": [user("r"), assistant("b")]},
            "do not begin with the same turns",
        ),
        (
            {"prompt": "x", "chosen": [*Q, assistant("a")], "rejected": [*Q, assistant("b")]},
            "the prompt and the turns before the answers differ",
        ),
        ({"instruction": "q", "generations": ["a"]}, "does not name its model"),
        (
            {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A", None]},
            "does not name its model",
        ),
        (
            {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A"]},
            "2 generations, but 1 models",
        ),
        ({"instruction": "q", "generations": [None], "model_name": "A"}, "no answer in a known"),
        ({"instruction": "q", "completions": [{"model": "A"}]}, "no answer in a known shape"),
        ({"instruction": "q", "completions": [{"model": "A", "response": 5}]}, "not int"),
    ],
)
def test_an_odd_row_is_counted_with_its_place_and_leaves_no_trace(row, reason, write_lines):
    """Nor does it count as a sample: the rows around it are numbered as if it were not there."""
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    file = write_lines([good, row, good])
    with ResponseStore(Path(":memory:")) as store:
        found = import_responses(store, str(file))
        assert (found.read, found.added, found.skipped_count) == (3, 4, 1)
        assert found.skipped[0].startswith(f"{file}:2: ") and reason in found.skipped[0]
        assert found.models == {"chosen": 2, "rejected": 2}
        samples = store.db.execute("SELECT sample FROM responses ORDER BY id").fetchall()
        assert samples == [(0,), (0,), (1,), (1,)]
        assert store.db.execute("SELECT count(*) FROM prompts").fetchone() == (1,)


def test_a_ladder_needs_all_its_columns_in_a_row(write_lines):
    rows = [{"prompt": "q", "3B": "a"}, {"prompt": "r", "3B": "a", "1B": "b"}]
    found, counts = taken(write_lines(rows), models=["3B", "1B"])
    assert found == [("3B", [user("r")], "a", "stop"), ("1B", [user("r")], "b", "stop")]
    assert "no column '1B'; the row has prompt, 3B" in counts.skipped[0]


def test_only_the_first_few_rows_are_shown_and_all_are_counted(write_lines):
    rows = [{"no": i} for i in range(7)] + [b"{", b'{"prompt": "\\ud800"}', b"[]", b"\xff"]
    _, counts = taken(write_lines([*rows, {"prompt": "q", "response": "a", "model": "A"}]))
    assert (counts.read, counts.skipped_count, len(counts.skipped)) == (12, 11, 5)


def test_an_answer_given_twice_is_taken_once_and_repeated_prompts_are_samples(write_lines):
    numbered = [{"prompt": "q", "response": t, "model": "A", "sample": 3} for t in "ab"]
    repeated = [{"prompt": "q", "response": t, "model": "A"} for t in "cd"]
    found, counts = taken(write_lines(numbered + repeated))
    assert [text for _, _, text, _ in found] == ["a", "c", "d"]
    assert (counts.added, counts.there) == (3, 1)


def test_a_name_given_here_stays_and_identities_are_apart_from_real_models(write_lines):
    file = write_lines([{"prompt": p, "response": "a", "model": "A"} for p in "qr"])
    with ResponseStore(Path(":memory:")) as store:
        import_responses(store, str(file))
        store.name_model("imported:A", "larger")
        file.write_text(file.read_text().replace('"r"', '"s"'))
        assert import_responses(store, str(file)).added == 1
        assert store.db.execute("SELECT * FROM models").fetchall() == [(1, "imported:A", "larger")]


def test_our_own_pairs_come_back_with_models_reasons_and_thoughts(tmp_path):
    sides = [Response("k", f"<think>\n{t}\n</think>\n\n{t}", (), "stop", 1) for t in "ab"]
    cut = Response("k", "cut", (), "length", 1)
    pairs = [Pair("p1", 0, tuple(TALK), *sides), Pair("p2", 0, tuple(Q), sides[0], cut)]
    write_pairs(tmp_path / "pairs.parquet", pairs, "large", "small")
    found, counts = taken(tmp_path / "pairs.parquet")
    assert found == [
        ("large", TALK, "a", "stop"), ("small", TALK, "b", "stop"),
        ("large", Q, "a", "stop"), ("small", Q, "cut", "length"),
    ]  # fmt: skip
    assert counts.assumed_ends == 0
