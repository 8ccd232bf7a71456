"""Protects pairing: which answers make a pair, why the others do not, and what the file holds.

Ties must never form a pair, a cut answer must not be taught as an ending, every candidate is
counted exactly once, and the Parquet file opens in `datasets` with the columns TRL reads.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.pairs.build import REASONS, PairCounts, build_pairs
from deltalearn.pairs.parquet import write_pairs
from deltalearn.records import Pair, Prompt, Response

PROMPT = Prompt("p", ({"role": "user", "content": "q"},))


def response(text: str, finish_reason: str = "stop", tokens: int | None = None) -> Response:
    ids = tuple(range(len(text) if tokens is None else tokens))
    error = "no room" if finish_reason == "error" else None
    return Response(f"key of {text}", text, ids, finish_reason, 3, error)


GOOD, ALSO_GOOD = response("good"), response("also good")
FAULTY = {
    "missing": None,
    "error": response("", "error"),
    "empty": response(" \n\t"),
    "truncated": response("cut off", "length"),
}


def built(candidates, **settings) -> tuple[list[Pair], PairCounts]:
    counts = PairCounts()
    return list(build_pairs(candidates, counts, **settings)), counts


def build(chosen, rejected, **settings) -> tuple[list[Pair], dict]:
    pairs, counts = built([(PROMPT, 0, chosen, rejected)], **settings)
    return pairs, counts.as_dict()


def the_reason(chosen, rejected, **settings) -> str | None:
    """Why this candidate was dropped; None if it became a pair. Checks the counts on the way."""
    pairs, counts = build(chosen, rejected, **settings)
    assert counts["candidates"] == 1 and list(counts["dropped"]) == list(REASONS)
    dropped = [reason for reason, n in counts["dropped"].items() if n]
    assert len(pairs) == counts["pairs"] == 1 - len(dropped)
    return dropped[0] if dropped else None


def test_two_good_answers_make_a_pair_in_the_given_direction():
    pairs, counts = build(GOOD, ALSO_GOOD)
    assert pairs == [Pair("p", 0, PROMPT.messages, GOOD, ALSO_GOOD)]
    assert counts == {
        "candidates": 1,
        "pairs": 1,
        "dropped": dict.fromkeys(REASONS, 0),
        "dropped_by_side": {},
    }


@pytest.mark.parametrize("reason", FAULTY)
def test_a_fault_of_either_side_or_both_drops_the_pair_and_names_the_side(reason):
    bad = FAULTY[reason]
    for chosen, rejected, side in (
        (bad, GOOD, "chosen"),
        (GOOD, bad, "rejected"),
        (bad, bad, "both"),
    ):
        pairs, counts = build(chosen, rejected)
        assert pairs == []
        assert counts["dropped"] == {**dict.fromkeys(REASONS, 0), reason: 1}
        assert counts["dropped_by_side"] == {f"{reason}:{side}": 1}


@pytest.mark.parametrize("first", range(3))
def test_the_first_reason_in_order_is_the_one_counted(first):
    """A missing answer over one with an error, an error over an empty one, and so on."""
    order = list(FAULTY)
    for second in range(first + 1, 4):
        assert the_reason(FAULTY[order[first]], FAULTY[order[second]]) == order[first]
        assert the_reason(FAULTY[order[second]], FAULTY[order[first]]) == order[first]


def test_an_empty_answer_that_was_cut_is_empty():
    """An answer of nothing but newlines up to the limit is nothing, even where cuts are kept."""
    assert the_reason(response("\n\n", "length"), GOOD, truncated="keep") == "empty"


@pytest.mark.parametrize("settings", [{}, {"truncated": "keep"}, {"max_length_difference": 100}])
def test_identical_texts_never_make_a_pair(settings):
    same = Response("another key", "good", (7, 8, 9), "stop", 3)  # same text, other ids
    assert the_reason(GOOD, same, **settings) == "identical"
    assert build(GOOD, same, **settings)[1]["dropped_by_side"] == {}


def test_identical_texts_one_of_them_cut_never_make_a_pair():
    cut = response("good", "length")
    assert the_reason(cut, GOOD, truncated="keep") == "identical"
    assert the_reason(cut, GOOD) == "truncated"


def test_texts_that_differ_by_a_space_are_not_identical():
    """The student learns bytes; a trailing newline is a difference like any other."""
    assert the_reason(GOOD, response("good\n")) is None


def test_truncated_answers_can_be_kept_and_stay_marked():
    cut = FAULTY["truncated"]
    pairs, _ = build(cut, GOOD, truncated="keep")
    assert pairs[0].chosen.finish_reason == "length"
    assert the_reason(GOOD, cut, truncated="keep") is None
    assert the_reason(FAULTY["error"], GOOD, truncated="keep") == "error"


@pytest.mark.parametrize(
    ("chosen", "rejected", "cap", "reason"),
    [
        (10, 7, 3, None),  # exactly the cap
        (11, 7, 3, "length_difference"),
        (8, 7, 0, "length_difference"),
        (7, 7, 0, None),
        (1, 50, 0, None),  # a shorter chosen answer is never capped
        (500, 1, None, None),
    ],
)
def test_length_cap_counts_tokens_of_chosen_minus_rejected(chosen, rejected, cap, reason):
    sides = response("long", tokens=chosen), response("short", tokens=rejected)
    assert the_reason(*sides, max_length_difference=cap) == reason


def test_counts_add_up_over_many_candidates_and_order_is_kept():
    other = Prompt("p2", ({"role": "user", "content": "q2"},))
    candidates = [
        (PROMPT, 0, GOOD, ALSO_GOOD),
        (PROMPT, 1, GOOD, GOOD),
        (other, 0, None, GOOD),
        (other, 1, FAULTY["truncated"], FAULTY["truncated"]),
        (other, 2, GOOD, FAULTY["truncated"]),
        (other, 3, ALSO_GOOD, GOOD),
    ]
    pairs, counts = built(candidates)
    assert [(p.prompt_id, p.sample) for p in pairs] == [("p", 0), ("p2", 3)]
    assert counts.as_dict() == {
        "candidates": 6,
        "pairs": 2,
        "dropped": {**dict.fromkeys(REASONS, 0), "missing": 1, "truncated": 2, "identical": 1},
        "dropped_by_side": {
            "missing:chosen": 1,
            "truncated:both": 1,
            "truncated:rejected": 1,
        },
    }
    assert built([])[1].as_dict()["candidates"] == 0


ANY_RESPONSE = st.none() | st.builds(
    response,
    text=st.sampled_from(["", " ", "a", "b", "ab"]),
    finish_reason=st.sampled_from(["stop", "length", "error"]),
    tokens=st.integers(1, 5),
)


@given(
    st.lists(st.tuples(st.just(PROMPT), st.just(0), ANY_RESPONSE, ANY_RESPONSE), max_size=10),
    st.sampled_from(["drop", "keep"]),
    st.none() | st.integers(0, 4),
)
def test_no_useless_pair_and_no_candidate_uncounted(candidates, truncated, cap):
    pairs, counts = built(candidates, truncated=truncated, max_length_difference=cap)
    numbers = counts.as_dict()
    assert len(candidates) == numbers["pairs"] + sum(numbers["dropped"].values())
    for pair in pairs:
        assert pair.chosen.text != pair.rejected.text
        for side in (pair.chosen, pair.rejected):
            assert side.text.strip() and side.finish_reason != "error"
            assert truncated == "keep" or side.finish_reason == "stop"
        if cap is not None:
            assert len(pair.chosen.token_ids) - len(pair.rejected.token_ids) <= cap


def test_reasoning_is_part_of_what_is_taught_or_left_out():
    thinking = replace(GOOD, reasoning="<think>hm</think>\n")
    (kept,), _ = built([(PROMPT, 0, thinking, ALSO_GOOD)], reasoning="keep")
    assert (kept.chosen.text, kept.chosen.reasoning) == ("<think>hm</think>\ngood", "")
    (stripped,), _ = built([(PROMPT, 0, thinking, ALSO_GOOD)], reasoning="strip")
    assert stripped.chosen.text == "good"


def test_answers_that_differ_in_their_reasoning_only_are_a_pair_if_it_is_taught():
    one, other = (replace(GOOD, reasoning=f"<think>{t}</think>") for t in "ab")
    assert the_reason(one, other, reasoning="keep") is None
    assert the_reason(one, other, reasoning="strip") == "identical"


def test_reasoning_without_an_answer_is_empty_once_it_is_stripped():
    endless = replace(response("", "length"), reasoning="<think>and so on")
    assert the_reason(endless, GOOD, reasoning="strip", truncated="keep") == "empty"
    assert the_reason(endless, GOOD, reasoning="keep", truncated="keep") is None


def test_a_cap_on_lengths_that_nobody_counted_is_an_error():
    """Imported answers have no token counts: a cap would pass them all without a word."""
    unknown = Response("k", "some text", (), "stop", 0)
    counted = replace(unknown, completion_tokens=3, text="other")
    with pytest.raises(UserError, match="no token counts"):
        built([(PROMPT, 0, unknown, GOOD)], max_length_difference=5)
    assert the_reason(counted, GOOD, max_length_difference=0) is None


# -- the file ------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "system", "content": "Größe 🙂"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": " second\n"},
]
PAIRS = [
    Pair("p1", 0, tuple(MESSAGES), response(" lead 你好\n"), response("cut", "length")),
    Pair("p2", 3, PROMPT.messages, GOOD, ALSO_GOOD),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pairs" / "big_over_small.parquet"
    write_pairs(path, PAIRS, "big", "small")
    return path


def test_rows_hold_the_conversation_and_where_it_came_from(file):
    first, second = pq.read_table(file).to_pylist()
    assert first == {
        "prompt": MESSAGES,
        "chosen": [{"role": "assistant", "content": " lead 你好\n"}],
        "rejected": [{"role": "assistant", "content": "cut"}],
        "prompt_id": "p1",
        "sample": 0,
        "chosen_model": "big",
        "rejected_model": "small",
        "chosen_finish_reason": "stop",
        "rejected_finish_reason": "length",
        "chosen_tokens": 9,
        "rejected_tokens": 3,
        "chosen_key": "key of  lead 你好\n",
        "rejected_key": "key of cut",
    }
    assert (second["prompt_id"], second["sample"]) == ("p2", 3)


EXPECTED_TYPES = {
    "prompt": "list<element: struct<role: string, content: string>>",
    "chosen": "list<element: struct<role: string, content: string>>",
    "rejected": "list<element: struct<role: string, content: string>>",
    "prompt_id": "string",
    "sample": "int32",
    "chosen_model": "string",
    "rejected_model": "string",
    "chosen_finish_reason": "string",
    "rejected_finish_reason": "string",
    "chosen_tokens": "int32",
    "rejected_tokens": "int32",
    "chosen_key": "string",
    "rejected_key": "string",
}


def types_of(path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def test_schema(file):
    assert types_of(file) == EXPECTED_TYPES


def test_no_pairs_at_all_still_write_a_table_with_the_schema(tmp_path):
    pairs, _ = built([(PROMPT, 0, GOOD, GOOD)])  # a lone candidate, dropped
    path = tmp_path / "empty.parquet"
    write_pairs(path, pairs, "big", "small")
    assert types_of(path) == EXPECTED_TYPES
    assert pq.read_table(path).to_pylist() == []


def test_opens_in_datasets_with_the_columns_of_trl(file, tmp_path):
    import datasets

    data = datasets.load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.column_names == list(EXPECTED_TYPES)
    assert data[0]["prompt"] == MESSAGES
    assert data[1]["chosen"] == [{"role": "assistant", "content": "good"}]


def test_writing_again_gives_the_same_bytes_and_leaves_no_other_file(file):
    """Pairs are a pure function of the store."""
    before = file.read_bytes()
    write_pairs(file, PAIRS, "big", "small")
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_failed_write_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()
    fails = lambda *a, **k: (_ for _ in ()).throw(OSError("full"))  # noqa: E731
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fails)
    with pytest.raises(OSError, match="full"):
        write_pairs(file, PAIRS[:1], "big", "small")
    assert file.read_bytes() == before


def test_a_trace_without_an_answer_is_no_answer():
    prompt = Prompt("p", ({"role": "user", "content": "q"},))
    thinks = Response("a", "", (1,), "stop", 1, reasoning="<think>hm</think>")
    answers = Response("b", "yes", (2,), "stop", 1)
    counts = PairCounts()
    assert list(build_pairs([(prompt, 0, thinks, answers)], counts)) == []
    assert counts.dropped["empty"] == 1
