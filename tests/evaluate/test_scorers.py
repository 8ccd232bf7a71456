"""Protects how an answer is compared with its reference: as people mean it, and never as a bare
string equality that a space or a composed letter breaks."""

from __future__ import annotations

import json

import pytest

from deltalearn.errors import UserError
from deltalearn.evaluate.reference.scorers import scorer


@pytest.mark.parametrize(
    ("name", "output", "reference", "score", "extracted"),
    [
        ("exact", " Paris\n", "Paris", 1, "Paris"),
        ("exact", "cafe\u0301", "caf\u00e9", 1, "caf\u00e9"),
        ("exact", "Paris.", "Paris", 0, "Paris."),
        ("contains", "It is PARIS, of course", "Paris", 1, "Paris"),
        ("contains", "It is Rome", "Paris", 0, ""),
        ("last_number", "so 3 + 4 is 7.00", "7", 1, "7.00"),
        ("last_number", "minus: -1,200", "-1200", 1, "-1200"),
        ("last_number", "it is 10", "-10", 0, "10"),
        ("last_number", "nothing", "7", 0, ""),
        ("letter", "A good one. The answer is (C).", "C", 1, "C"),
        ("letter", "**Answer: B** since A is wrong", "b", 1, "B"),
        ("letter", "(B) A thing", "(B)", 1, "B"),
        ("letter", "D", "D", 1, "D"),
        ("letter", "I do not know", "D", 0, "I"),
        ("gsm8k", "so it is $18", "9 + 9 = 18 #### 18", 1, "18"),
        ("gsm8k", "18 or 19", "#### 18", 0, "19"),
    ],
)
def test_verdicts(name, output, reference, score, extracted):
    grade = scorer(name).grade(output, reference)
    assert (grade.score, grade.extracted) == (score, extracted)


def test_the_last_match_of_a_pattern_is_the_answer():
    first_group = scorer("regex", r"<a>(.*?)</a>")
    assert first_group.grade("<a>no</a> <a> yes </a>", "yes").score == 1
    assert first_group.grade("yes", "yes").score == 0
    assert scorer("regex", r"\d+").grade("3 then 44", "44").extracted == "44"


def test_instructions_are_verified():
    wanted = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    compare = scorer("ifeval")
    assert compare.grade("no comma here", json.dumps(wanted)).score == 1
    assert compare.grade("a, b", json.dumps(wanted)).score == 0
    with pytest.raises(UserError, match="instruction_id_list"):
        compare.grade("a", "no JSON")


@pytest.mark.parametrize(
    ("name", "reference", "message"),
    [("last_number", "seven", "no number"), ("letter", "seven", "no letter")],
)
def test_a_reference_that_does_not_fit_is_named(name, reference, message):
    with pytest.raises(UserError, match=message):
        scorer(name).grade("7", reference)


def test_a_judge_is_refused_clearly():
    with pytest.raises(UserError, match="judge compares nothing yet"):
        scorer("judge")


def test_only_the_whole_text_must_have_ended():
    assert scorer("exact").whole and not scorer("contains").whole
