"""Protects the reading of a letter from MMLU answers in prose, as the Tülu 3 suite reads it.

Gold answers of all 14,042 real questions in the canonical phrasings, a table of tricky outputs with
verdicts decided by hand, and agreement with the suite's patterns applied literally.
"""

from __future__ import annotations

import csv
import re

import pytest
from helpers.data import DATA
from helpers.patience import processor_time
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.evaluate.tulu3.mmlu.grader import extract, grade

# -- by hand: output, the letter the suite's rules find in it ("" = none, wrong) ----------------

TRICKY = [
    # the canonical endings
    ("Because of x.\n\nTherefore, the answer is: C", "C"),
    ("Therefore, the answer is (B).", "B"),
    ("THEREFORE THE ANSWER IS: D", "D"),
    ("therefore, the answer is: d", "D"),  # a lower-case letter counts here
    ("Therefore,the answer is:(A)", "A"),
    ("Therefore, the\nanswer is:\n\nB", "B"),  # any white space
    # "answer is"
    ("The answer is: c", "C"),
    ("The correct answer is D, not A.", "D"),
    ("The answer is a matter of taste. (C)", "A"),  # the suite's rule: "a" is read as A
    ("The answer is Ardent. I choose (B).", "B"),  # no word boundary behind the A
    ("The answer is option B", "B"),  # "option" is no letter; the lone B is
    # "is correct"
    ("Option B is correct since A fails.", "B"),
    ("I think (C) is correct.", "C"),
    ("It is clear that b is correct", "B"),
    # a letter in brackets, the first one
    ("(A) is wrong, (D) is right.", "A"),
    ("Not (b) but (C)", "C"),  # brackets want a capital
    # stand-alone letters: the last of the first line that has one
    ("B", "B"),
    ("A or B?\nI go for C", "B"),
    ("no letter here\nA first, then D\nC", "D"),
    ("A cat sat.", "A"),  # the article is a letter like any other
    ("c", ""),  # alone, a small letter is none
    # order of the rules: an earlier rule wins wherever it stands
    ("(A) is tempting. Therefore, the answer is: B", "B"),
    ("C is correct, so the answer is: D", "D"),
    ("Therefore, the answer is: A. No, wait. Therefore, the answer is: B", "A"),  # first, not last
    # markdown between phrase and letter hides the phrase; a later rule may still find the letter
    ("The answer is: **B**", "B"),
    ("**Therefore, the answer is: B**", "B"),
    ("A closer look.\nTherefore, the answer is: **C**", "A"),  # the article of the first line
    ("Therefore, the answer is $\\boxed{D}$", "D"),
    ("Therefore, the answer is: E", ""),
    ("Therefore, the answer is: BC", ""),
    ("AB CD", ""),
    ("", ""),
    ("\n \n", ""),
    ("答案是 B。", "B"),
    ("ABCD " * 50_000 + "\nB", "B"),
]


@pytest.mark.parametrize(("output", "letter"), TRICKY, ids=[repr(o[:40]) for o, _ in TRICKY])
def test_letter_by_hand(output, letter):
    assert extract(output) == letter
    scores = {gold: grade(output, gold).score for gold in "ABCD"}
    assert scores == {gold: float(gold == letter) for gold in "ABCD"}


def test_what_is_no_letter_is_refused():
    with pytest.raises(ValueError, match="'E'"):
        grade("Therefore, the answer is: E", "E")
    with pytest.raises(ValueError, match="'a'"):
        grade("A", "a")  # the data's letters are capitals


# -- agreement with the suite's patterns, literally ----------------------------------------------


def literal(output: str) -> str:
    """OLMES's backup patterns: the first that `re.search` finds."""
    for pattern in (
        r"(?i)therefore,?\s*the\s*answer\s*is:?\s*\(?([A-D])\b",
        r"(?i)answer\s*is:?\s*\(?([A-D])\b",
        r"(?i)([A-D])\)?\s+is\s+correct",
        r"\(([A-D])\)",
        r".*\b([A-D])\b",
    ):
        if match := re.search(pattern, output):
            return match.group(1).upper()
    return ""


PIECES = ["therefore", ",", " the ", "answer", "is", ":", " ", "\n", "(", ")", "A", "b", "C", "Dx"]
PIECES += ["correct", "\r", "\x85", "_", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
@settings(max_examples=1500)
def test_line_by_line_search_finds_what_the_one_pattern_finds(output):
    assert extract(output) == literal(output)


BAITS = [
    "answer is " * 60_000,
    "A" + " " * 600_000,
    "therefore " * 60_000,
    "x" * 600_000,
    "(" * 600_000,
]


@pytest.mark.parametrize("bait", BAITS, ids=[b[:12] for b in BAITS])
def test_half_a_megabyte_of_bait_takes_no_time(bait):
    """Linear: some 0.3 s. The literal `.*` pattern takes minutes on a line without a letter."""
    with processor_time(5):
        extract(bait)


# -- the real questions --------------------------------------------------------------------------


@pytest.mark.data("mmlu/test")
def test_gold_letters_of_all_questions_score_one():
    """14,042 questions x 3 phrasings, each behind the question itself, which holds many letters."""
    count = 0
    for path in sorted((DATA / "mmlu" / "test").glob("*.csv")):
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                letter = "ABCD"[int(row["answer"])]
                other = "ABCD"[int(row["answer"]) - 1]
                choices = "\n".join(f" {c}. {row[f'choice{i}']}" for i, c in enumerate("ABCD"))
                asked = f"{row['question']}\n{choices}\n"
                for end in (f": {letter}", f" ({letter}).", f": {letter}. Not {other}."):
                    assert grade(f"{asked}Therefore, the answer is{end}", letter).score == 1
                    assert grade(f"{asked}Therefore, the answer is{end}", other).score == 0
                count += 1
    assert count == 14_042
