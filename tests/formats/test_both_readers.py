"""Protects what two commands promise of one file: `responses import` and `tune --pairs` find the
same prompt and the same answers in it, or both refuse it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairReader
from deltalearn.responses.importer import import_responses
from deltalearn.responses.store import ResponseStore


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, Q, MORE = turn("system", "s"), turn("user", "q"), turn("user", "r")
SAID, GOOD, BAD = (turn("assistant", text) for text in ("hello", "a", "b"))
TALK = [SYSTEM, Q, SAID, MORE]
ANSWERS = {"chosen": "a", "rejected": "b"}
TURNS = {"chosen": [GOOD], "rejected": [BAD]}

# Rows as the tools write them, and the prompt; the answers are "a" and "b".
FORMATS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "TRL, standard": ({"prompt": "q", **ANSWERS}, [Q]),
    "TRL, conversational": ({"prompt": TALK, **TURNS}, TALK),
    "TRL, implicit prompt": ({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, TALK),
    "content in parts": (
        {"prompt": [turn("user", [{"type": "text", "text": "q"}])], **TURNS},
        [Q],
    ),
    "messages with an older answer": ({"messages": [Q, SAID], **TURNS}, [Q]),
    "UltraFeedback binarized": (
        {
            "prompt": "q", "prompt_id": "u", "chosen": [Q, GOOD], "rejected": [Q, BAD],
            "messages": [Q, GOOD], "score_chosen": 8.5, "score_rejected": 7.0,
        },
        [Q],
    ),
    "UltraFeedback with a system turn": (
        {"prompt": "q", "chosen": [SYSTEM, Q, GOOD], "rejected": [SYSTEM, Q, BAD]},
        [SYSTEM, Q],
    ),
    "first question, then the whole dialogue": (
        {"prompt": [Q], "chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]},
        TALK,
    ),
    "the last question again": (
        {"prompt": TALK, "chosen": [MORE, GOOD], "rejected": [MORE, BAD]},
        TALK,
    ),
    "the system turn in the prompt alone": (
        {"prompt": [SYSTEM, Q], "chosen": [*TALK[1:], GOOD], "rejected": [*TALK[1:], BAD]},
        TALK,
    ),
    "Argilla": (
        {
            "instruction": "q", "chosen_response": "a", "rejected_response": "b",
            "chosen_model": "A", "rejected_model": "B", "chosen_avg_rating": 4.5,
        },
        [Q],
    ),
    "Argilla, with a dash": (
        {"prompt": "q", "chosen": [Q, GOOD], "rejected": [Q, BAD], "chosen-model": "A"},
        [Q],
    ),
    "Orca pairs": ({"system": "s", "question": "q", **ANSWERS}, [SYSTEM, Q]),
    "Orca pairs, Argilla's": (
        {
            "system": "s", "input": "q", **ANSWERS, "generations": ["b", "a"],
            "order": ["rejected", "chosen"], "labelling_model": "judge", "rating": [1, 9],
        },
        [SYSTEM, Q],
    ),
    "a system column beside TRL's": ({"system": "s", "prompt": "q", **ANSWERS}, [SYSTEM, Q]),
    "distilabel": (
        {"system_prompt": "s", "instruction": "q", "chosen": [Q, GOOD], "rejected": [Q, BAD]},
        [SYSTEM, Q],
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: hello\n\nHuman: r\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: hello\n\nHuman: r\n\nAssistant: b",
        },
        TALK[1:],
    ),
}  # fmt: skip

REFUSED = {
    "half of a question": {"instruction": "q", "input": "more", **ANSWERS},
    "no prompt": ANSWERS,
    "an empty prompt": {"question": " ", **ANSWERS},
    "one side": {"prompt": "q", "chosen": "a"},
    "a side of another type": {"prompt": "q", "chosen": "a", "rejected": {"text": "b"}},
    "a side that is the user's": {"prompt": "q", "chosen": "a", "rejected": [MORE]},
    "other questions": {"chosen": [Q, GOOD], "rejected": [MORE, BAD]},
    "another prompt": {"prompt": "x", "chosen": [Q, GOOD], "rejected": [Q, BAD]},
    "another system turn": {
        "prompt": [turn("system", "t"), Q], "chosen": [SYSTEM, Q, GOOD],
        "rejected": [SYSTEM, Q, BAD],
    },
    "several turns": {"chosen": [Q, GOOD, MORE, GOOD], "rejected": [Q, BAD, MORE, BAD]},
    "a prompt that is answered": {"prompt": [Q, SAID], **TURNS},
    "a call of a tool as answer": {
        "prompt": "q", "chosen": [{**GOOD, "tool_calls": [{"name": "w"}]}], "rejected": "b",
    },
    "reasoning beside the answer": {
        "prompt": "q", "chosen": [{**GOOD, "reasoning_content": "hm"}], "rejected": "b",
    },
    "an error": {"prompt": "q", **ANSWERS, "rejected_finish_reason": "error"},
}  # fmt: skip


def imported(source: Path, **options: Any) -> tuple[list[list[dict]], list[str]]:
    """(prompts, answers) that `responses import` finds; empty if it refuses."""
    query = (
        "SELECT p.messages, r.text FROM responses r JOIN prompts p ON p.id = r.prompt ORDER BY r.id"
    )
    with ResponseStore(Path(":memory:")) as store:
        try:
            import_responses(store, str(source), **options)
        except UserError:
            return [], []
        found = store.db.execute(query).fetchall()
    return [json.loads(messages) for messages, _ in found], [text for _, text in found]


def tuned(source: Path, **options: Any) -> tuple[list[list[dict]], list[str]]:
    """(prompts, answers) that `tune --pairs` finds; raw text as a user's turn."""
    try:
        rows = list(PairReader(str(source), **options))
    except UserError:
        return [], []
    prompts = [[turn("user", r.prompt)] if isinstance(r.prompt, str) else r.prompt for r in rows]
    return [list(p) for p in prompts for _ in "ab"], [
        t for r in rows for t in (r.chosen, r.rejected)
    ]


@pytest.mark.parametrize("reader", [imported, tuned])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_read_by_both(reader, name, write_lines, tmp_path):
    row, prompt = FORMATS[name]
    expected = ([prompt, prompt], ["a", "b"])
    assert reader(write_lines([row])) == expected
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert reader(tmp_path / "rows.parquet") == expected
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert reader(tmp_path / "rows.json") == expected


@pytest.mark.parametrize("reader", [imported, tuned])
@pytest.mark.parametrize("name", REFUSED)
def test_each_odd_row_is_refused_by_both(reader, name, write_lines):
    assert reader(write_lines([REFUSED[name]])) == ([], [])


@pytest.mark.parametrize("reader", [imported, tuned])
def test_both_read_the_same_sources(reader, write_lines, tmp_path):
    """A data set that was saved, and a folder with the files of several splits."""
    rows = {split: [{"question": split, **ANSWERS}] for split in ("train", "test")}
    data = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in rows.items()})
    data.save_to_disk(str(tmp_path / "saved"))
    for split, content in rows.items():
        write_lines(content, f"folder/{split}-00000-of-00001.jsonl")
    for source in (tmp_path / "saved", tmp_path / "folder"):
        for options, split in (({}, "train"), ({"split": "test"}, "test")):
            prompts, answers = reader(source, **options)
            assert (prompts, answers) == ([[turn("user", split)]] * 2, ["a", "b"])


def test_tools_are_for_the_template_that_tuning_has(write_lines):
    """A store keeps roles and texts alone: without its tools it would be another question."""
    file = write_lines([{"prompt": [Q], **TURNS, "tools": [{"name": "w"}]}])
    assert imported(file) == ([], [])
    (row,) = PairReader(str(file))
    assert row.template == {"tools": [{"name": "w"}]}
