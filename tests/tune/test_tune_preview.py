"""Protects the token preview: what it shows is what is trained, and hostile text cannot act."""

from __future__ import annotations

import re

import pytest

from deltalearn.formats.preferences import PairRow
from deltalearn.tune.dataset import Examples
from deltalearn.tune.preview import SHOWN_TOKENS, WIDTH, preview, visible
from deltalearn.tune.tokenize import prepare_examples


def row(prompt="ask", chosen="good", rejected="bad", ends=("stop", "stop")) -> PairRow:
    return PairRow("here", ({"role": "user", "content": prompt},), chosen, rejected, *ends)


def blocks(text: str) -> list[tuple[str, list[int]]]:
    """(title, ids shown) of each block of tokens."""
    found = []
    for part in text.split("\n-- ")[1:]:
        title, _, body = part.partition("\n")
        shown = [int(i) for i in re.findall(r"':(\d+)(?=\s)", body.split("\n== ")[0])]
        found.append((title, shown))
    return found


def test_every_token_is_shown_with_what_is_trained(tiny_tokenizer):
    examples, _ = prepare_examples(tiny_tokenizer, [row(), row("b", ends=("length", "stop"))], 99)
    shown = blocks(preview(tiny_tokenizer, examples))
    expected = [i.tolist() for e in examples for i in (e.prompt, e.chosen, e.rejected)]
    assert [ids for _, ids in shown] == expected
    titles = [title for title, _ in shown]
    assert titles[0] == f"prompt, {len(examples[0].prompt)} tokens, not trained"
    assert "tokens trained; its last is the end of turn" in titles[1]
    assert "no end of turn: its generator was cut (finish reason length)" in titles[4]
    assert "its last is the end of turn" in titles[5]


def test_tokens_are_text_or_the_vocabularys_spelling(tiny_tokenizer):
    examples, _ = prepare_examples(tiny_tokenizer, [row("a 🐍", "x\ny")], 99)
    text = preview(tiny_tokenizer, examples)
    assert "'<|assistant|>':" in text
    assert "'\\n':" in text
    assert "'ðŁ':" in text, "two bytes of the snake, as byte-level vocabularies write them"
    assert "\N{REPLACEMENT CHARACTER}" not in text


@pytest.mark.parametrize(
    "hostile", ["\x1b[31mred", "\x9b2J", "a\u202eb", "x\ry", "\x07", "[red]x[/]"]
)
def test_no_character_reaches_the_terminal_that_it_would_act_on(tiny_tokenizer, hostile):
    rows = [row(hostile, hostile, "b"), row(hostile, "", "b")]
    examples, counts = prepare_examples(tiny_tokenizer, rows, 99)
    counts.first["empty"] = hostile
    text = preview(tiny_tokenizer, examples, counts=counts)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert all(c.isprintable() for c in visible(hostile))
    assert visible("a\\x1b") == "a\\\\x1b", "an escape in the text is told from one of ours"


def test_it_is_a_page_however_long_the_pairs(tiny_tokenizer):
    long = "@ " * 2000
    examples, _ = prepare_examples(tiny_tokenizer, [row(long, long, long + "z")] * 2, 99_999)
    text = preview(tiny_tokenizer, examples)
    lines = text.splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= WIDTH + 2
    pair = examples[0]
    for (_, shown), ids in zip(
        blocks(text), (pair.prompt, pair.chosen, pair.rejected), strict=False
    ):
        assert shown == [*ids[: SHOWN_TOKENS // 2].tolist(), *ids[-SHOWN_TOKENS // 2 :].tolist()]
        assert f"... {len(ids) - SHOWN_TOKENS:,} more ..." in text


def test_an_open_end_is_shown_if_there_is_one(tiny_tokenizer):
    rows = [row(f"number {i}", ends=("stop", "length" if i == 7 else "stop")) for i in range(9)]
    examples, _ = prepare_examples(tiny_tokenizer, rows, 99)
    assert re.findall(r"== pair (\d+)", preview(tiny_tokenizer, examples)) == ["1", "8"]
    closed, _ = prepare_examples(tiny_tokenizer, rows[:7], 99)
    assert re.findall(r"== pair (\d+)", preview(tiny_tokenizer, closed)) == ["1", "2"]
    assert re.findall(r"== pair (\d+)", preview(tiny_tokenizer, closed, count=3)) == list("123")
    one = Examples.select(closed, [0])
    assert re.findall(r"== pair (\d+)", preview(tiny_tokenizer, one)) == ["1"]


def test_why_an_end_is_missing(tiny_tokenizer):
    cut, counts = prepare_examples(tiny_tokenizer, [row("a", "@" * 50)], 12, truncation="cut")
    assert "or tune.truncation cut it" in preview(tiny_tokenizer, cut, counts=counts)
    length, counts = prepare_examples(tiny_tokenizer, [row(ends=("length", "stop"))], 99)
    assert "or tune.truncation cut it" not in preview(tiny_tokenizer, length, counts=counts)


def test_counts_of_all_pairs(tiny_tokenizer):
    rows = [row(), row(chosen=""), row("x", ends=(None, "stop"))]
    examples, counts = prepare_examples(tiny_tokenizer, rows, 99)
    text = preview(tiny_tokenizer, examples, counts=counts)
    assert "2 pairs; tokens on average: prompt" in text
    assert "== all pairs: 3 read, 2 kept" in text
    assert "dropped 1: empty, first here: a side without text" in text
    assert "answers taken to have ended: 1" in text
    assert "cut pairs" not in text
