"""Protects the reading of pairs: every shape that TRL takes becomes the same small record.

Pitfalls of this kind (docs/pitfalls.md) are here: an implicit prompt ends at a turn, never inside
one, and a string prompt may stand beside conversations. What is no pair is counted, never a crash.
"""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.formats.preferences import MEANINGS, PairReader, PairRow
from deltalearn.formats.rows import source_digest
from deltalearn.pairs import write_pairs
from deltalearn.records import Pair
from deltalearn.tune.tokenize import prepare_examples

SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "What is 2+2?"}
MORE = {"role": "user", "content": "And 3+3?"}
TOOL = {"role": "tool", "content": "4"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD, BAD = says(" Four. "), says("Five.")
EXPECTED = ((ASK,), " Four. ", "Five.")


@pytest.fixture
def read(write_lines):
    def run(*cells: dict, **options) -> PairReader:
        return PairReader(str(write_lines(cells)), **options)

    return run


def parts(row: PairRow) -> tuple:
    return row.prompt, row.chosen, row.rejected


SHAPES = {  # name: (cells, options, expected parts)
    "standard": (
        {"prompt": ASK["content"], "chosen": " Four. ", "rejected": "Five."},
        {},
        EXPECTED,
    ),
    "standard, as raw text": (
        {"prompt": "2+2 =", "chosen": " 4", "rejected": " 5"},
        {"text": "raw"},
        ("2+2 =", " 4", " 5"),
    ),
    "raw text in other columns": (
        {"question": "2+2 =", "chosen_response": " 4", "rejected_response": " 5"},
        {"text": "raw only"},
        ("2+2 =", " 4", " 5"),
    ),
    "conversations beside raw text": (
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"text": "raw"},
        EXPECTED,
    ),
    "conversational": ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {}, EXPECTED),
    "implicit prompt": ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {}, EXPECTED),
    "implicit prompt of several turns": (
        {
            "chosen": [SYSTEM, ASK, GOOD, MORE, says("6")],
            "rejected": [SYSTEM, ASK, GOOD, MORE, BAD],
        },
        {},
        ((SYSTEM, ASK, GOOD, MORE), "6", "Five."),
    ),
    "UltraFeedback": (
        {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {},
        EXPECTED,
    ),
    "UltraFeedback with a system turn": (
        {"prompt": ASK["content"], "chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]},
        {},
        ((SYSTEM, ASK), " Four. ", "Five."),
    ),
    "string prompt of a longer conversation": (
        {
            "prompt": MORE["content"] + "\n",
            "chosen": [ASK, GOOD, MORE, says("6")],
            "rejected": [ASK, GOOD, MORE, BAD],
        },
        {},
        ((ASK, GOOD, MORE), "6", "Five."),
    ),
    "string prompt, assistant's turn alone": (
        {"prompt": ASK["content"], "chosen": [GOOD], "rejected": [BAD]},
        {},
        EXPECTED,
    ),
    "string prompt, one side plain": (
        {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": "Five."},
        {},
        EXPECTED,
    ),
    "prompt repeated in the conversations": (
        {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {},
        EXPECTED,
    ),
    "conversation, plain answers": (
        {"prompt": [ASK], "chosen": " Four. ", "rejected": "Five."},
        {},
        EXPECTED,
    ),
    "messages column": (
        {"messages": [ASK, says("old")], "chosen": [GOOD], "rejected": [BAD]},
        {},
        EXPECTED,
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What? Human: no turn"
            "\n\nAssistant:  Four. ",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What? Human: no turn"
            "\n\nAssistant: Five.",
        },
        {},
        (
            (
                {"role": "user", "content": "Hi"},
                says("Hello"),
                {"role": "user", "content": "What? Human: no turn"},
            ),
            " Four. ",
            "Five.",
        ),
    ),
    "ladder of plain answers": (
        {"prompt": ASK["content"], "qwen_3b": " Four. ", "qwen_1.5b": "Five.", "qwen_7b": None},
        {"chosen_column": "qwen_3b", "rejected_column": "qwen_1.5b"},
        EXPECTED,
    ),
    "ladder of conversations": (
        {"messages": [ASK, says("old")], "3b": [ASK, GOOD], "1b": [BAD]},
        {"chosen_column": "3b", "rejected_column": "1b"},
        EXPECTED,
    ),
    "ladder without a prompt column": (
        {"3b": [ASK, GOOD], "1b": [ASK, BAD]},
        {"chosen_column": "3b", "rejected_column": "1b"},
        EXPECTED,
    ),
    "named prompt column": (
        {"prompt": "wrong", "question": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt_column": "question"},
        EXPECTED,
    ),
    "named prompt column of plain text": (
        {"question": ASK["content"], "chosen": " Four. ", "rejected": "Five."},
        {"prompt_column": "question"},
        EXPECTED,
    ),
    "content as text parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": ASK["content"]}]}],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        {},
        EXPECTED,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(read, name):
    cells, options, expected = SHAPES[name]
    reader = read({**cells, "source": "x", "score_chosen": 1.5}, **options)
    (row,) = reader
    assert parts(row) == expected
    assert row.where.endswith("rows.jsonl:1")
    assert (reader.counts.read, reader.counts.pairs) == (1, 1)


def test_swapped_columns_are_of_the_same_format(read):
    """Raw text stays raw text: only what is preferred changes."""
    (row,) = read(
        {"prompt": "2+2 =", "chosen": " 4", "rejected": " 5"},
        chosen_column="rejected",
        rejected_column="chosen",
        text="raw",
    )
    assert parts(row) == ("2+2 =", " 5", " 4")


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("same text", "same text"), ("ok", "ok then"), ("a b", "a c")]
)
class TestImplicitPrompt:
    """TRL makes "same tex" and "t" of an identical pair, and the prompt "o" of "ok", "ok then"."""

    def test_no_prompt_is_made_of_shared_characters(self, read, chosen, rejected):
        with pytest.raises(UserError, match="--prompt-column"):
            list(read({"chosen": chosen, "rejected": rejected}))

    def test_turns_are_compared_whole(self, read, chosen, rejected):
        (row,) = read({"chosen": [ASK, says(chosen)], "rejected": [ASK, says(rejected)]})
        assert parts(row) == ((ASK,), chosen, rejected)


def test_an_identical_pair_keeps_its_prompt_and_is_dropped_later(read, tiny_tokenizer):
    """Found as what it is, not as an empty answer to everything."""
    same = [ASK, says("same text")]
    other = [ASK, BAD]
    _, counts = prepare_examples(
        tiny_tokenizer,
        read({"chosen": same, "rejected": same}, {"chosen": same, "rejected": other}),
        99,
    )
    assert counts.dropped["identical_ids"] == 1


UNUSABLE = {
    "no_column": {"prompt": [ASK], "chosen": [GOOD]},
    "no_preference": {"instruction": "q", "generations": ["a", "b"], "model_names": ["A", "B"]},
    "half_prompt": {"instruction": "q", "input": "more", "chosen": "a", "rejected": "b"},
    "wrong_type": {"prompt": [ASK], "chosen": 7, "rejected": [BAD]},
    "blank_prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "no_prompt": {"chosen": "a", "rejected": "b"},
    "no_answer": {"prompt": [ASK], "chosen": [GOOD], "rejected": [MORE]},
    "prompts_differ": {"chosen": [ASK, GOOD], "rejected": [MORE, BAD]},
    "several_turns": {"chosen": [ASK, GOOD, MORE, says("6")], "rejected": [ASK, BAD, MORE, BAD]},
    "finish_reason": {
        "prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "chosen_finish_reason": "error",
    },
    "unreadable": b"{torn",
}  # fmt: skip
MORE_UNUSABLE = [
    ("wrong_type", {"prompt": [ASK], "chosen": ["text"], "rejected": [BAD]}),
    ("wrong_type", {"prompt": [{"role": "user"}], "chosen": [GOOD], "rejected": [BAD]}),
    ("wrong_type", {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "tools": "{torn"}),
    ("wrong_type", {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "tools": 7}),
    ("blank_prompt", {"prompt": [], "chosen": [GOOD], "rejected": [BAD]}),
    ("blank_prompt", {"chosen": [GOOD], "rejected": [BAD]}),
    ("blank_prompt", {"question": " ", "chosen": "a", "rejected": "b"}),
    (
        "blank_prompt",
        {"prompt": [{"role": "user", "content": " "}], "chosen": "a", "rejected": "b"},
    ),
    ("no_preference", {"prompt": "q", "response": "a", "model": "A"}),
    ("no_preference", {"instruction": "q", "completions": [{"model": "A", "response": "a"}]}),
    ("no_answer", {"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]}),
    ("no_answer", {"prompt": [ASK], "chosen": [says("a") | {"thinking": "b"}], "rejected": [BAD]}),
    ("prompts_differ", {"prompt": "else", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}),
    ("prompts_differ", {"prompt": [MORE], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}),
    ("prompts_differ", {"prompt": "What is 2+2?", "chosen": [ASK, GOOD], "rejected": [MORE, BAD]}),
    ("several_turns", {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD, MORE, BAD]}),
    ("several_turns", {"prompt": [ASK], "chosen": [GOOD, TOOL, GOOD], "rejected": [BAD]}),
    ("several_turns", {"prompt": "2+2?", "chosen": [GOOD, TOOL, GOOD], "rejected": [BAD]}),
    ("several_turns", {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD, MORE, BAD]}),
    ("several_turns", {"prompt": [ASK], "chosen": [ASK, GOOD, MORE, GOOD], "rejected": [BAD]}),
    (
        "several_turns",
        {
            "prompt": MORE["content"],
            "chosen": [ASK, GOOD, MORE, BAD],
            "rejected": [ASK, BAD, MORE, BAD],
        },
    ),
]


@pytest.mark.parametrize(
    ("reason", "cells"), [*UNUSABLE.items(), *MORE_UNUSABLE], ids=lambda x: str(x)[:20]
)
def test_what_is_no_pair_is_counted_with_its_place(read, reason, cells):
    good = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
    reader = read(good, cells, cells, good)
    assert [parts(row) for row in reader] == [EXPECTED, EXPECTED]
    assert reader.counts.unusable == {reason: 2}
    assert reader.counts.first[reason].split("rows.jsonl:")[1].startswith("2: ")
    assert (reader.counts.read, reader.counts.pairs) == (4, 2)


def test_every_reason_has_a_case():
    assert {*UNUSABLE, "conversation"} == set(MEANINGS)


def test_conversations_are_no_pairs_where_raw_text_was_asked_for(read):
    """Nor is HH-RLHF's text, whose turns stand in the answers."""
    rows = [SHAPES[name][0] for name in ("conversational", "HH-RLHF")]
    reader = read({"prompt": "q", "chosen": "a", "rejected": "b"}, *rows, text="raw only")
    assert [parts(row) for row in reader] == [("q", "a", "b")]
    assert reader.counts.unusable == {"conversation": 2}


def test_a_system_column_has_no_place_in_raw_text(read):
    cells = {"prompt": "q", "chosen": "a", "rejected": "b"}
    reader = read(cells, {"system": "be brief", **cells}, text="raw")
    assert [parts(row) for row in reader] == [("q", "a", "b")]
    assert reader.counts.unusable == {"half_prompt": 1}


def test_what_text_was_is_counted(read):
    plain = {"prompt": "q", "chosen": "a", "rejected": "b"}
    reader = read(plain, SHAPES["conversational"][0], SHAPES["HH-RLHF"][0], plain)
    assert len(list(reader)) == 4
    assert (reader.counts.plain, reader.counts.transcribed) == (2, 1)


def test_no_usable_row_is_an_error_with_reasons_columns_and_remedy(read):
    with pytest.raises(UserError) as error:
        list(read({"question": "a", "best": "b"}, {"question": "a", "worst": "c"}, b"{torn"))
    text = str(error.value)
    assert "rows.jsonl: no usable pair among 3 rows" in text
    assert "a column is missing or empty: 2; first" in text
    assert "rows.jsonl:1: no 'chosen'; there are question, best" in text
    assert "not JSON or not text: 1; first" in text
    assert "columns seen: question, best, worst" in text
    assert "--chosen-column" in text


def test_no_rows_and_no_source(read):
    with pytest.raises(UserError, match="no rows here"):
        list(read())
    with pytest.raises(UserError, match="no such file"):
        list(PairReader("./none.jsonl"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
columns = [
    "prompt",
    "instruction",
    "input",
    "system",
    "messages",
    "chosen",
    "rejected",
    "tools",
    "chosen_finish_reason",
]


@given(cells=st.dictionaries(st.sampled_from(columns), json_values))
@settings(max_examples=150)
@pytest.mark.slow
def test_no_row_crashes(tmp_path_factory, cells):
    file = tmp_path_factory.mktemp("any") / "rows.jsonl"
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    file.write_text(json.dumps(cells) + "\n" + json.dumps(good) + "\n")
    reader = PairReader(str(file))
    rows = list(reader)
    assert len(rows) == 2 - sum(reader.counts.unusable.values())
    for row in rows:
        assert isinstance(row.chosen, str) and isinstance(row.rejected, str) and row.prompt


def test_finish_reasons_are_those_of_the_named_columns(read):
    cells = {"prompt": [ASK], "a": "x", "b": "y", "a_finish_reason": "length"}
    (row,) = read({**cells, "b_finish_reason": "stop"}, chosen_column="a", rejected_column="b")
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == ("length", "stop")
    (row,) = read(cells, chosen_column="b", rejected_column="a")
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == (None, "length")


@pytest.mark.parametrize("as_text", [True, False])
def test_tools_and_template_arguments_are_kept(read, as_text):
    tools = [{"name": "search"}]
    cells = {
        "prompt": [ASK, {"role": "assistant", "tool_calls": [{"name": "search"}]},
                   {"role": "tool", "content": "3", "name": None}],
        "chosen": [GOOD],
        "rejected": [BAD],
        "tools": json.dumps(tools) if as_text else tools,
        "chat_template_kwargs": {"enable_thinking": False, "date": None},
    }  # fmt: skip
    (row,) = read(cells)
    assert row.template == {"tools": tools, "enable_thinking": False}
    assert row.prompt[1:] == (
        {"role": "assistant", "tool_calls": [{"name": "search"}]},
        {"role": "tool", "content": "3"},
    )


def test_nulls_that_arrow_put_into_objects_are_taken_out(tmp_path, write_lines):
    """Rows of Parquet are those of JSONL, whatever keys the objects of other rows have."""

    def row(key: str, more: dict) -> dict:
        call = {"function": {"name": key, "arguments": {key: 1, "list": [None, {key: 2}]}}}
        return {
            "prompt": [ASK, {"role": "assistant", "tool_calls": [call]}, TOOL],
            "chosen": [GOOD],
            "rejected": [BAD],
            "tools": [{"name": key, "parameters": {"properties": {key: {"type": "string"}}}}],
            "chat_template_kwargs": {"nested": more},
        }

    rows = [row("city", {"a": 1}), row("unit", {"b": 2})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = list(PairReader(str(tmp_path / "rows.parquet")))
    expected = list(PairReader(str(write_lines(rows))))
    for one, other in zip(found, expected, strict=True):
        assert (one.prompt, one.template) == (other.prompt, other.template)
    assert found[0].prompt[1]["tool_calls"][0]["function"]["arguments"]["list"][0] is None


class TestSplitsOfAFolder:
    """A folder as `hf download` leaves it is the data set that it was."""

    @pytest.fixture
    def folder(self, write_lines, tmp_path):
        def write(*names: str) -> str:
            for name in names:
                row = {"prompt": name, "chosen": "a", "rejected": "b"}
                write_lines([row], f"set/data/{name}.jsonl")
            return str(tmp_path / "set")

        return write

    @staticmethod
    def prompts(source: str, split: str | None = None) -> list[str]:
        return [r.prompt[0]["content"][:5] for r in PairReader(source, split=split)]

    def test_one_is_read(self, folder):
        source = folder(
            "train-00000-of-00002", "train-00001-of-00002-0a1b", "test_x-00000-of-00001", "extra"
        )
        assert self.prompts(source) == ["train", "train"]
        assert self.prompts(source, "test_x") == ["test_"]
        with pytest.raises(UserError, match="no split 'dev'; there are train, test_x"):
            self.prompts(source, "dev")

    def test_without_train_one_must_be_named(self, folder):
        source = folder("dev-00000-of-00001", "test-00000-of-00001")
        with pytest.raises(UserError, match="no split 'train'; there are test, dev: name one"):
            self.prompts(source)

    def test_other_folders_are_read_whole(self, folder):
        source = folder("other", "file")
        assert self.prompts(source) == ["file", "other"]
        with pytest.raises(UserError, match="split 'other' has no effect on files"):
            self.prompts(source, "other")


class TestDigest:
    """What identifies pairs is the files that are read, nothing beside them."""

    def test_of_a_folder(self, write_lines, tmp_path):
        source = str(write_lines(["a"], "data/rows.jsonl").parent)
        before = source_digest(source)
        (tmp_path / "data" / "README.md").write_text("about")
        assert source_digest(source) == before
        write_lines(["b"], "data/more.jsonl")
        assert source_digest(source) != before

    def test_of_a_split(self, write_lines):
        for split in ("train", "test"):
            file = write_lines(["a"], f"data/{split}-00000-of-00001.jsonl")
        source = str(file.parent)
        (name,) = source_digest(source, "test")
        assert name == "test-00000-of-00001.jsonl"

    def test_of_a_saved_data_set(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        source = str(tmp_path / "saved")
        datasets.Dataset.from_list([{"a": 1}]).save_to_disk(source)
        before = source_digest(source)
        assert any(name.endswith(".arrow") for name in before)
        (tmp_path / "saved" / "cache-1.arrow").touch()  # as `map` leaves them
        (tmp_path / "saved" / "README.md").touch()
        assert source_digest(source) == before


def test_our_own_pairs_file(tmp_path, answered):
    pairs = [
        Pair("p", 0, (SYSTEM, ASK), answered(" lead\n"), answered("cut", finish_reason="length"))
    ]
    write_pairs(tmp_path / "pairs.parquet", pairs, "big", "small")
    (row,) = PairReader(str(tmp_path / "pairs.parquet"))
    assert parts(row) == ((SYSTEM, ASK), " lead\n", "cut")
    assert (row.chosen_finish_reason, row.rejected_finish_reason) == ("stop", "length")
    assert row.where.endswith("pairs.parquet: row 1")


def test_folder_and_limit(write_lines, tmp_path):
    for part in "ab":
        rows = [{"prompt": f"{part}{i}", "chosen": "x", "rejected": "y"} for i in range(3)]
        write_lines([b"torn", *rows], f"data/{part}.jsonl")
    reader = PairReader(str(tmp_path / "data"), limit=4)
    prompts = [row.prompt[0]["content"] for row in reader]
    assert prompts == ["a0", "a1", "a2", "b0"]
    assert reader.counts.read == 6, "two torn rows on the way"
    assert [row.prompt[0]["content"] for row in reader] == prompts, "it can be read again"
    assert reader.counts.read == 6


def test_rows_are_read_one_by_one(read, monkeypatch):
    """Constant memory: nothing is read ahead of what is asked for."""
    from deltalearn.formats import preferences as sources

    taken = []
    original = sources.rows
    monkeypatch.setattr(
        sources,
        "rows",
        lambda *a, **k: (taken.append(row.where) or row for row in original(*a, **k)),
    )
    rows = iter(read(*[{"prompt": "p", "chosen": "a", "rejected": "b"}] * 5))
    next(rows)
    assert len(taken) == 1


class TestSavedDataSets:
    cells = ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},)

    @pytest.fixture
    def data(self):
        datasets = pytest.importorskip("datasets")
        return datasets.Dataset.from_list(list(self.cells))

    def test_one(self, data, tmp_path):
        data.save_to_disk(str(tmp_path / "saved"))
        (row,) = PairReader(str(tmp_path / "saved"))
        assert parts(row) == EXPECTED
        with pytest.raises(UserError, match="split 'train' has no effect"):
            list(PairReader(str(tmp_path / "saved"), split="train"))

    def test_splits(self, data, tmp_path):
        import datasets

        both = {"train": data, "test": datasets.concatenate_datasets([data, data])}
        datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
        assert len(list(PairReader(str(tmp_path / "saved")))) == 1
        assert len(list(PairReader(str(tmp_path / "saved"), split="test"))) == 2
        with pytest.raises(UserError, match="no split 'dev'; there are train, test"):
            list(PairReader(str(tmp_path / "saved"), split="dev"))

    def test_damaged(self, data, tmp_path):
        data.save_to_disk(str(tmp_path / "saved"))
        next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"torn")
        with pytest.raises(UserError, match="this saved data set does not load"):
            list(PairReader(str(tmp_path / "saved")))


def test_counts_of_the_source_reach_those_of_the_examples(read, tiny_tokenizer):
    good = {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}
    rows = read(good, UNUSABLE["no_prompt"], {**good, "chosen": ""})
    _, counts = prepare_examples(tiny_tokenizer, rows, 99)
    assert counts.unusable == {"no_prompt": 1}
    assert set(counts.first) == {"no_prompt", "empty"}
    assert (counts.pairs, counts.examples) == (2, 1)
