"""Protects what is called contamination: the rules, restated slowly, find the same texts.

Tülu 3's rule (more than half of an item's words in 8-grams of one prompt) and GPT-3's (a 13-gram in
common, wording left out) are written down here a second time, with sets of words.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.overlap import find
from deltalearn.overlap.find import COMMON, EIGHT, EXACT, KINDS, SIZES, THIRTEEN, Sought
from deltalearn.overlap.words import Words, words


def runs(text: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]


def slowly(items: list[str], others: list[str]) -> dict[str, set[tuple[int, int]]]:
    """The rules by sets of tuples, a pair of texts after the other."""
    split, against = [words(t) for t in items], [words(t) for t in others]
    found: dict[str, set[tuple[int, int]]] = {kind: set() for kind in KINDS}
    for kind, size in SIZES.items():
        held = Counter(run for text in split for run in set(runs(text, size)))
        common = {run for run, number in held.items() if number > COMMON}
        for i, item in enumerate(split):
            own = runs(item, size)
            counted = {
                at + k for at, run in enumerate(own) if run not in common for k in range(size)
            }
            for n, other in enumerate(against):
                there = set(runs(other, size)) - common
                met = {at + k for at, run in enumerate(own) if run in there for k in range(size)}
                if met and (kind == THIRTEEN or len(met) > len(counted) / 2):
                    found[kind].add((i, n))
    found[EXACT] = {
        (i, n) for i, a in enumerate(split) for n, b in enumerate(against) if a and a == b
    }
    return found


def quickly(items: list[str], others: list[str]) -> dict[str, set[tuple[int, int]]]:
    met = Sought(items).among(iter(others))
    return {kind: {tuple(pair) for pair in pairs.tolist()} for kind, pairs in met.found.items()}


def made_up(seed: int) -> tuple[list[str], list[str]]:
    """Texts of few words, that share stretches of each other and some wording."""
    draw = random.Random(seed)
    stretches = [draw.choices("abcdefg", k=draw.randint(3, 20)) for _ in range(12)]
    wording = list("hijklmnopqrstu")

    def text() -> str:
        parts = [draw.choice(stretches) for _ in range(draw.randint(0, 3))]
        body = [word for part in parts for word in part[draw.randint(0, 3) :]]
        return " ".join([*(wording if draw.random() < 0.4 else []), *body])

    return [text() for _ in range(draw.randint(0, 60))], [text() for _ in range(40)]


@pytest.mark.parametrize("seed", range(8))
def test_the_rules_are_those_written_down_slowly(seed, monkeypatch):
    items, others = made_up(seed)
    expected = slowly(items, others)
    assert quickly(items, others) == expected
    monkeypatch.setattr(find, "BATCH", 7)
    assert quickly(items, others) == expected, "whatever is read at a time"


short_texts = st.lists(st.text("ab .", max_size=60), max_size=6)


@given(items=short_texts, others=short_texts)
@settings(max_examples=60)
def test_any_texts(items, others):
    assert quickly(items, others) == slowly(items, others)


QUESTION = "Natalia sold clips to 48 of her friends in April and then sold half as many in May"


@pytest.mark.parametrize(
    ("other", "kinds"),
    [
        (QUESTION, {EXACT, EIGHT, THIRTEEN}),
        (f"  {QUESTION.upper()}!!\n", {EXACT, EIGHT, THIRTEEN}),
        (f"Solve this. {QUESTION}. Think first.", {EIGHT, THIRTEEN}),
        (" ".join(QUESTION.split()[:10]) + " and nothing more", {EIGHT}),
        (" ".join(QUESTION.split()[:8]) + " and nothing more", set()),
        (" ".join(QUESTION.split()[::-1]), set()),
        ("", set()),
    ],
)
def test_what_counts_as_the_same_question(other, kinds):
    met = Sought([QUESTION, ""]).among(["something else", other])
    assert {kind for kind in KINDS if met.count(kind)} == kinds
    assert met.count() == bool(kinds)
    assert met.pairs().tolist() == ([[0, 1]] if kinds else [])


def test_texts_of_a_script_without_spaces_are_compared_by_signs():
    text = "我们今天去公园散步然后回家吃饭看书睡觉"
    assert Sought([text]).among([f"请翻译:{text}。"]).count(EIGHT) == 1


def test_forms_of_unicode_are_one():
    assert words("Ｇｒöße １２") == words("grösse 12")


def test_wording_of_a_benchmark_is_not_what_an_item_says():
    wording = "Read the question below with care and answer it with a single word from the list"
    items = [f"{wording}: {chr(97 + i) * 3}" for i in range(COMMON + 1)]
    met = Sought(items).among([f"{wording}: something new"])
    assert met.count() == 0
    assert Sought(items[:3]).among([f"{wording}: something new"]).count() == 3


def test_a_run_never_crosses_texts():
    texts = [words(QUESTION)[:7], words(QUESTION)[7:]]
    hashes, which, places = Words.of(texts).runs(8)
    assert which.tolist() == [1] * len(places) and places[0] == 0
    assert len(hashes) == len(texts[1]) - 7
