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

from deltalearn.errors import UserError
from deltalearn.pairs import write_pairs
from deltalearn.records import Pair, Response
from deltalearn.responses.export import export
from deltalearn.responses.importer import Imported, import_responses
from deltalearn.responses.maintenance import check
from deltalearn.responses.store import ResponseStore


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


Q = [user("q")]
TALK = [system("s"), user("q"), assistant("a0"), user("r")]
CALL = {**assistant("a"), "tool_calls": [{"id": "1", "function": {"name": "w"}}]}

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
    "the system turn in the sides alone": (
        {
            "prompt": "q",
            "chosen": [*TALK[:2], assistant("a")],
            "rejected": [*TALK[:2], assistant("b")],
        },
        {},
        [("chosen", TALK[:2], "a", "stop"), ("rejected", TALK[:2], "b", "stop")],
    ),
    "the system turn in the sides alone, and first question": (
        {"prompt": "q", "chosen": [*TALK, assistant("a")], "rejected": [*TALK, assistant("b")]},
        {},
        [("chosen", TALK, "a", "stop"), ("rejected", TALK, "b", "stop")],
    ),
    "the system turn in the prompt alone, and the whole dialogue": (
        {
            "prompt": TALK[:2],
            "chosen": [*TALK[1:], assistant("a")],
            "rejected": [*TALK[1:], assistant("b")],
        },
        {},
        [("chosen", TALK, "a", "stop"), ("rejected", TALK, "b", "stop")],
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
    "Orca pairs, Argilla's": (
        {
            "system": "s", "input": "q", "chosen": "a", "rejected": "b", "generations": ["b", "a"],
            "order": ["rejected", "chosen"], "labelling_model": "judge", "rating": [1, 9],
        },
        {},
        [("chosen", TALK[:2], "a", "stop"), ("rejected", TALK[:2], "b", "stop")],
    ),
    "distilabel, with the pair that was made of it": (
        {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A", "B"],
         "chosen": [*Q, assistant("b")], "rejected": [*Q, assistant("a")]},
        {},
        [("A", Q, "a", "stop"), ("B", Q, "b", "stop")],
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
    "UltraFeedback, with system prompts": (
        {
            "instruction": "q", "system_prompt": "s",
            "completions": [
                {"model": "A", "response": "a", "custom_system_prompt": "Be brief."},
                {"model": "B", "response": "b", "custom_system_prompt": "Be long."},
                {"model": "C", "response": "c", "custom_system_prompt": None},
                {"model": "D", "response": "d", "custom_system_prompt": " "},
            ],
        },
        {},
        [
            ("A", [system("Be brief."), *Q], "a", "stop"),
            ("B", [system("Be long."), *Q], "b", "stop"),
            ("C", TALK[:2], "c", "stop"),
            ("D", TALK[:2], "d", "stop"),
        ],
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
    "reasoning": (
        {"prompt": "q", "response": "<think>hm</think>\n\na", "model": "A"},
        {},
        [("A", Q, "a", "stop")],
    ),
    "a mark that is only mentioned": (
        {"prompt": "q", "response": "Write </think> at the end.", "model": "A"},
        {},
        [("A", Q, "Write </think> at the end.", "stop")],
    ),
    "reasoning that was cut": (
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
        ({"prompt": "q", "chosen": "a", "rejected": {"text": "b"}}, "is dict, not text"),
        ({"prompt": "q", "chosen": "a", "rejected": [user("b")]}, "not the assistant's"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rejected_finish_reason": "?"}, "'?'"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt and no Human:"),
        (
            {"chosen": [*Q, assistant("a")], "rejected": [user("r"), assistant("b")]},
            "the conversations part at turn 0",
        ),
        (
            {"prompt": "x", "chosen": [*Q, assistant("a")], "rejected": [*Q, assistant("b")]},
            "the conversation does not repeat the prompt",
        ),
        # Nor may another system turn be put in the place of one.
        (
            {"prompt": [system("t"), *Q], "chosen": [*TALK[:2], assistant("a")],
             "rejected": [*TALK[:2], assistant("b")]},
            "does not begin with the prompt's turns",
        ),
        # Without its tools a question is another one.
        ({"prompt": "q", "response": "a", "model": "A", "tools": [{"name": "w"}]}, "row has tools"),
        ({"messages": [*Q, CALL, *Q, assistant("a")], "model": "A"}, "message 1 has tool_calls"),
        ({"messages": [*Q, CALL], "model": "A"}, "message 1 has tool_calls: tools are not supp"),
        ({"prompt": "q", "response": [CALL], "model": "A"}, "the answer has tool_calls"),
        ({"prompt": "q", "chosen": [CALL], "rejected": "b"}, "the answer has tool_calls"),
        ({"prompt": "q", "chosen": [CALL, assistant("a")], "rejected": "b"}, "is one turn"),
        ({"instruction": "q", "generations": ["a"]}, "does not name its model"),
        (
            {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A", None]},
            "does not name its model",
        ),
        (
            {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A"]},
            "2 generations, but 1 models",
        ),
        ({"instruction": "q", "generations": [], "model_name": "A"}, "no answer in a known shape"),
        ({"instruction": "q", "generations": [None], "model_name": "A"}, "generation 1: no answer"),
        ({"instruction": "q", "completions": [{"model": "A"}]}, "completion 1: no answer"),
        ({"instruction": "q", "completions": [{"model": "A", "response": 5}]}, "not int"),
    ],
)  # fmt: skip
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


GENERATED = {"generation_models": ["A", "B", "C", "D"]}
NOT_TEXT = "an answer must be text or messages, not float"


@pytest.mark.parametrize(
    ("row", "options", "places"),
    [
        (
            {"prompt": "q", "A": None, "B": "b", "C": float("nan"), "D": "d"},
            {"models": ["A", "B", "C", "D"]},
            ["column 'A'", "column 'C'"],
        ),
        (
            {"instruction": "q", "generations": [None, "b", float("nan"), "d"], **GENERATED},
            {},
            ["generation 1", "generation 3"],
        ),
        (
            {
                "instruction": "q",
                "completions": [
                    {"model": m, "response": r}
                    for m, r in (("A", None), ("B", "b"), ("C", float("nan")), ("D", "d"))
                ],
            },
            {},
            ["completion 1", "completion 3"],
        ),
    ],
)
def test_a_cell_without_an_answer_is_counted_and_takes_no_other_with_it(
    row, options, places, write_lines
):
    file = write_lines([row])
    found, counts = taken(file, **options)
    assert found == [("B", Q, "b", "stop"), ("D", Q, "d", "stop")]
    first, second = places
    assert counts.skipped == [f"{file}:1: {first}: no answer", f"{file}:1: {second}: {NOT_TEXT}"]
    assert (counts.read, counts.skipped_count, counts.assumed_ends) == (1, 2, 2)


def test_a_failed_generation_needs_no_name(write_lines):
    row = {"instruction": "q", "generations": ["a", None], "generation_models": ["A", None]}
    found, counts = taken(write_lines([row]))
    assert (found, counts.skipped_count) == ([("A", Q, "a", "stop")], 1)


def test_calls_that_are_none_cost_no_answer(write_lines):
    """Parquet has the field in every turn."""
    turn = {**assistant("a"), "tool_calls": None}
    found, _ = taken(write_lines([{"messages": [*Q, turn], "model": "A", "tools": []}]))
    assert found == [("A", Q, "a", "stop")]


# -- settings without effect ----------------------------------------------------------------------

PLAIN = {"prompt": "q", "response": "a", "model": "A"}
NAMELESS = {"prompt": "q", "response": "b"}


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([PLAIN, PLAIN], {"name": "X"}, "--model-name 'X' has no effect: every row names .*A"),
        ([{"x": 1}, PLAIN], {"name": "X"}, "no effect"),
        (
            [{"prompt": "q", "chosen": "a", "rejected": "b"}],
            {"name": "X"},
            r"every row names its models already \(chosen, rejected\)",
        ),
        (
            [{"prompt": "q", "A": "a"}],
            {"name": "X", "models": ["A"]},
            "--model-name 'X' has no effect with --column",
        ),
    ],
)
def test_a_setting_that_changes_nothing_is_an_error_before_anything_is_stored(
    rows, options, says, write_lines
):
    with ResponseStore(Path(":memory:")) as store:
        with pytest.raises(UserError, match=says):
            import_responses(store, str(write_lines(rows)), **options)
        assert store.count() == 0


@pytest.mark.parametrize("options", [{"name": "X"}, {"models": ["zzz"]}])
def test_our_own_export_takes_no_names(options, write_lines, tmp_path):
    with ResponseStore(Path(":memory:")) as store, ResponseStore(Path(":memory:")) as other:
        import_responses(store, str(write_lines([PLAIN])))
        export(store, tmp_path / "all.jsonl")
        with pytest.raises(UserError, match=r"has no effect: .* \(A\); remove it"):
            import_responses(other, str(tmp_path / "all.jsonl"), **options)
        assert other.count() == 0


def test_a_name_is_for_the_rows_that_lack_one(write_lines):
    found, _ = taken(write_lines([PLAIN, {"x": 1}, NAMELESS]), name="X")
    assert found == [("A", Q, "a", "stop"), ("X", Q, "b", "stop")]
    row = {"instruction": "q", "generations": ["a", "b"], "generation_models": ["A", None]}
    found, _ = taken(write_lines([row]), name="X")
    assert [answer[0] for answer in found] == ["A", "X"]


def test_a_file_without_answers_says_so_whatever_was_set(write_lines):
    with ResponseStore(Path(":memory:")) as store, pytest.raises(UserError, match="no answers to"):
        import_responses(store, str(write_lines([{"x": 1}, b"{"])), name="X")


# -- numbers --------------------------------------------------------------------------------------


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


def test_our_own_pairs_come_back_with_models_reasons_and_reasoning(tmp_path):
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
