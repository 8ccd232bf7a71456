"""Protects what a column means: what its type says it is, and all of it counts or is refused.

The same rows are the same prompts and answers whatever file they come from and whoever reads them:
tuning, prompts, questions and imports. Nothing that changes a question is left out unsaid.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Json, List, Value

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairReader
from deltalearn.formats.questions import read_items
from deltalearn.prompts.read import read_prompts
from deltalearn.responses.importer import import_responses
from deltalearn.responses.store import ResponseStore


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, Q, SAID, MORE = (
    turn("system", "s"),
    turn("user", "q"),
    turn("assistant", "h"),
    turn("user", "r"),
)
TALK = [SYSTEM, Q, SAID, MORE]
ANSWERS = {"chosen": "a", "rejected": "b", "response": "a", "answer": "a", "model": "M"}
READERS = ["pairs", "prompts", "questions", "imports"]


def read(reader: str, file: Path, **options: Any) -> list[list[dict[str, Any]]]:
    """The prompts that a reader finds in a file."""
    if reader == "pairs":
        return [list(row.prompt) for row in PairReader(str(file), **options)]
    if reader == "prompts":
        found = read_prompts(str(file), **options)
        assert not found.rejects, found.rejects
        return [list(p.messages) for p in found.prompts]
    if reader == "questions":
        return [list(item.messages) for item in read_items(str(file), **options)]
    with ResponseStore(Path(":memory:")) as store:
        assert not import_responses(store, str(file), **options).skipped_count
        found = store.db.execute("SELECT messages FROM prompts").fetchall()
    return [json.loads(messages) for (messages,) in found]


def sharegpt(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[t["role"]], "value": t["content"]} for t in turns]


def struct(turns: list[dict[str, Any]]) -> dict[str, list]:
    return {key: [t[key] for t in turns] for key in turns[0]}


SHAPES = {  # one conversation, as different tools store it
    "turns": TALK,
    "JSON text": json.dumps(TALK),
    "JSON text of several lines": json.dumps(TALK, indent=2),
    "text of Python": str(TALK),
    "ShareGPT": sharegpt(TALK),
    "ShareGPT as text": json.dumps(sharegpt(TALK)),
    "a struct of lists": struct(TALK),
    "a struct of lists of ShareGPT": struct(sharegpt(TALK)),
    "nulls of Arrow": [{**t, "tool_calls": None, "name": None} for t in TALK],
    "parts of text": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in TALK],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_conversation_is_read_in_every_shape(shape, reader, write_lines, tmp_path):
    row = {"messages": SHAPES[shape], **ANSWERS}
    assert read(reader, write_lines([row])) == [TALK]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert read(reader, tmp_path / "rows.parquet") == [TALK]


@pytest.mark.parametrize("column", ["prompt", "question", "conversations", "input"])
def test_turns_as_text_are_turns_in_every_column(column, write_lines):
    row = {column: json.dumps(TALK), **ANSWERS}
    for reader in READERS:
        assert read(reader, write_lines([row])) == [TALK], reader


SIDES = {
    "JSON text": (json.dumps([Q]), json.dumps([turn("assistant", "a")]), "b"),
    "whole conversations as text": ("q", *(json.dumps([Q, turn("assistant", x)]) for x in "ab")),
    "one turn each, as LLaMA-Factory has it": (
        sharegpt([Q]), {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"},
    ),
    "structs of lists": (struct([Q]), struct([turn("assistant", "a")]), "b"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SIDES)
def test_the_sides_of_a_pair_in_other_shapes(shape, write_lines):
    prompt, chosen, rejected = SIDES[shape]
    file = write_lines([{"prompt": prompt, "chosen": chosen, "rejected": rejected}])
    for text in ("chat", "raw"):  # turns are never raw text
        (row,) = PairReader(str(file), text=text)
        assert (row.prompt, row.chosen, row.rejected) == ((Q,), "a", "b")
    assert read("imports", file) == [[Q]]


NO_TURNS = {
    "torn": json.dumps(TALK)[:-9],
    "of unknown speakers": json.dumps([{"from": "tool", "value": "x"}]),
    "as numpy prints it": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",
    "of different lengths": {"role": ["user", "user"], "content": ["a"]},
    "of strings and turns": json.dumps([Q, "a"]),
    "ending with the assistant": json.dumps([SAID]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_TURNS)
def test_what_begins_as_turns_is_never_text(kind, reader, write_lines):
    with pytest.raises((UserError, AssertionError)):
        read(reader, write_lines([{"prompt": NO_TURNS[kind], **ANSWERS}]))


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": 1}', "[x", '[{"a": 1}]', "[{role: x}]", "{"])
@pytest.mark.parametrize("reader", READERS)
def test_other_text_stays_text(text, reader, write_lines):
    assert read(reader, write_lines([{"prompt": text, **ANSWERS}])) == [[turn("user", text)]]


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    [tool("add", {"a": {"type": "integer"}})],
    [tool("city", {"c": {"type": "string", "enum": ["Rome", None]}}), tool("now", {})],
]
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]


def json_files(rows: list[dict[str, Any]], folder: Path) -> dict[str, Path]:
    """The same rows with their objects as JSON of Arrow, at several depths, and as text."""
    Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(str(folder / "mixed.parquet"))
    whole = Features({name: Json() if name == "tools" else List(Json()) for name in rows[0]})
    Dataset.from_list(rows, features=whole).to_parquet(str(folder / "whole.parquet"))
    Dataset.from_list(rows, features=whole).save_to_disk(str(folder / "saved"))
    texts = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts), folder / "texts.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "structs.parquet")
    # Columns of another writer have the type alone, without what `datasets` notes beside it.
    table = pa.table({name: [json.dumps(row[name]) for row in rows] for name in rows[0]})
    types = pa.schema([(name, pa.json_()) for name in rows[0]])
    pq.write_table(table.cast(types), folder / "plain.parquet")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_json_of_arrow_is_what_it_holds(write_lines, tmp_path):
    """Tools are those of JSON lines from each file, and no text of any of them."""
    asked = [Q, turn("assistant", "", tool_calls=CALL), turn("tool", "1"), MORE]
    rows = [
        {"prompt": prompt, "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")],
         "tools": tools}
        for prompt, tools in zip(([Q], asked), TOOLS, strict=True)
    ]  # fmt: skip
    expected = list(PairReader(str(write_lines(rows))))
    assert [row.template["tools"] for row in expected] == TOOLS
    (tmp_path / "files").mkdir()
    for name, file in json_files(rows, tmp_path / "files").items():
        found = list(PairReader(str(file)))
        told = [(row.prompt, row.chosen, row.rejected, row.template) for row in found]
        assert told == [(r.prompt, r.chosen, r.rejected, r.template) for r in expected], name


@pytest.mark.parametrize("reader", READERS)
def test_json_of_arrow_in_every_reader(reader, tmp_path):
    features = Features({"messages": Json(), **dict.fromkeys(ANSWERS, Value("string"))})
    rows = [{"messages": TALK, **ANSWERS}, {"messages": [Q], **ANSWERS}]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    assert read(reader, tmp_path / "rows.parquet") == [TALK, [Q]]


def test_json_of_arrow_that_is_none_costs_its_row(tmp_path):
    texts = pa.array(['[{"role": "user", "content": "q"}]', "{torn"])
    table = pa.table({"messages": pa.ExtensionArray.from_storage(pa.json_(), texts)})
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read_prompts(str(tmp_path / "rows.parquet"))
    assert [p.messages for p in found.prompts] == [(Q,)]
    assert "'messages' is of type JSON, and is not JSON" in found.rejects[0]["reason"]


@pytest.mark.parametrize("reader", READERS)
class TestSystem:
    """A system column is a turn, wherever it is read."""

    @pytest.mark.parametrize("prompt", ["q", [Q], json.dumps([Q])])
    @pytest.mark.parametrize("column", ["system", "system_prompt", "custom_system_prompt"])
    def test_becomes_a_turn(self, reader, column, prompt, write_lines):
        file = write_lines([{column: "s", "prompt": prompt, **ANSWERS}])
        assert read(reader, file) == [[SYSTEM, Q]]
        named = {"pairs": "prompt_column", "questions": "prompt_column", "prompts": "column"}
        if reader in named:
            assert read(reader, file, **{named[reader]: "prompt"}) == [[SYSTEM, Q]]

    def test_said_twice_is_said_once(self, reader, write_lines):
        file = write_lines([{"system": "s", "prompt": [SYSTEM, Q], **ANSWERS}])
        assert read(reader, file) == [[SYSTEM, Q]]

    @pytest.mark.parametrize(
        "row",
        [
            {"system": "other", "prompt": [SYSTEM, Q]},
            {"system": "s", "system_prompt": "other", "prompt": "q"},
            {"system": ["s"], "prompt": "q"},
        ],
    )
    def test_a_conflict_is_an_error(self, reader, row, write_lines):
        with pytest.raises((UserError, AssertionError)):
            read(reader, write_lines([{**row, **ANSWERS}]))

    def test_an_empty_one_is_none(self, reader, write_lines):
        rows = [{"system": cell, "prompt": f"q{i}", **ANSWERS} for i, cell in enumerate([None, ""])]
        assert read(reader, write_lines(rows)) == [[turn("user", "q0")], [turn("user", "q1")]]


CHANGED = {
    "input": "Haus",
    "context": "A passage.",
    "history": [["before", "said"]],
    "documents": [{"title": "t", "text": "A passage."}],
    "few_shot": [{"question": "1+1", "answer": "2"}],
    "choices": {"label": ["A", "B"], "text": ["yes", "no"]},
    "images": ["cat.png"],
    "options": [3, 4],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("column", CHANGED)
def test_what_changes_a_question_counts_or_is_refused(column, reader, write_lines):
    row = {"instruction": "q", column: CHANGED[column], **ANSWERS}
    file = write_lines([row])
    with pytest.raises((UserError, AssertionError), match=rf"instruction and {column}.*ignore-col"):
        read(reader, file)
    assert read(reader, file, ignore_columns=[column]) == [[Q]]
    # An empty one changes nothing, and what the question says anyhow does not either.
    assert read(reader, write_lines([{**row, column: type(CHANGED[column])()}])) == [[Q]]


@pytest.mark.parametrize("reader", READERS)
def test_what_the_question_has_already_is_no_more(reader, write_lines):
    text = "A passage. Is it so? yes or no"
    row = {"prompt": text, "context": "A passage.", "choices": ["yes", "no"], **ANSWERS}
    assert read(reader, write_lines([row])) == [[turn("user", text)]]
    row = {"messages": [Q], "input": [Q], **ANSWERS}
    assert read(reader, write_lines([row])) == [[Q]]


@pytest.mark.parametrize("reader", READERS)
def test_a_piece_of_a_word_is_not_what_the_question_says(reader, write_lines):
    row = {"prompt": "Which of 15 articles?", "choices": ["5", "art"], **ANSWERS}
    with pytest.raises((UserError, AssertionError), match="prompt and choices"):
        read(reader, write_lines([row]))


@pytest.mark.parametrize("reader", ["prompts", "questions", "imports"])
@pytest.mark.parametrize(
    ("column", "cell"), [("tools", [{"name": "w"}]), ("chat_template_kwargs", {"date": "today"})]
)
def test_what_only_a_template_can_use_is_refused_by_others(reader, column, cell, write_lines):
    file = write_lines([{"prompt": "q", column: cell, **ANSWERS}])
    with pytest.raises((UserError, AssertionError)):
        read(reader, file)
    assert read(reader, file, ignore_columns=[column]) == [[Q]]


HH = "\n\nHuman: q\n\nAssistant: h\n\nHuman: r\n\nAssistant:"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["", " "])
def test_the_text_of_hh_rlhf_is_turns(reader, end, write_lines):
    assert read(reader, write_lines([{"prompt": HH + end, **ANSWERS}])) == [[Q, SAID, MORE]]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["Human: q", "Say Human: and\n\nAssistant: then", "Assistant: q"])
def test_text_that_names_them_only_is_text(reader, text, write_lines):
    assert read(reader, write_lines([{"prompt": text, **ANSWERS}])) == [[turn("user", text)]]


def test_turns_of_text_are_counted(write_lines):
    rows = [{"prompt": HH, **ANSWERS}, {"prompt": "q", **ANSWERS}]
    assert read_prompts(str(write_lines(rows))).counts["transcripts"] == 1
    with ResponseStore(Path(":memory:")) as store:
        assert import_responses(store, str(write_lines(rows))).transcripts == 2


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"text": "q", "answer": "a"}, "prompt_column"),
        ({"prompt": "q", "target": "a"}, "answer_column"),
        ({"prompt": "q", "answer": "a", "kind": "k"}, "task_column"),
    ],
)
def test_a_missing_column_names_the_key_that_names_another(tmp_path, row, key):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row))
    options = {"task_column": "task"} if key == "task_column" else {}
    with pytest.raises(UserError, match=f"the row has {', '.join(row)}; {key} of these questions"):
        read_items(str(file), **options)
