"""Protects the verdicts on PopQA: an alias in the output is enough, anywhere, in three spellings.

No task of lm_eval to compare with; the rule is short enough to be written out a second time here.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from helpers.data import DATA
from helpers.patience import processor_time
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.popqa.grader import gold, grade

POPQA = DATA / "popqa_subset" / "popqa_1000.jsonl"
SHOTS = DATA / "tulu3_fewshot" / "popqa_15shot.json"

needs_data = pytest.mark.data("popqa_subset", "tulu3_fewshot")


# -- by hand -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An output, the aliases, the verdict."""

    output: str
    aliases: list[str]
    published: int


INDIA = ["India", "Bharat", "Republic of India", "in", "IN", "\U0001f1ee\U0001f1f3"]
# fmt: off
CASES = [
    Case("Paris", ["Paris"], 1),
    Case("It is Paris.", ["Paris"], 1),
    Case("paris", ["Paris"], 1),
    Case("PARIS", ["Paris"], 0),  # the output is not lower-cased
    Case("pARIS", ["Paris"], 0),
    Case("Politician", ["politician"], 1),  # capitalised
    Case("an American politician", ["politician"], 1),
    Case("politicians", ["politician"], 1),
    Case("New york city", ["New York City"], 1),  # capitalised lowers what follows
    Case("new york city", ["New York City"], 1),
    Case("New York city", ["New York City"], 0),  # none of the three spellings
    Case("NEW YORK CITY", ["New York City"], 0),
    Case("New  York City", ["New York City"], 0),
    Case("New York\nCity", ["New York City"], 0),
    Case("NYC", ["New York City", "NYC"], 1),
    Case("Not Paris, but London", ["London"], 1),
    Case("Paris or London", ["London"], 1),  # several answers: one is enough
    Case("It is not Paris", ["Paris"], 1),  # a denial is not read
    Case("Londonderry", ["London"], 1),
    Case("Rock", ["rock music"], 0),  # part of an alias is not it
    Case("rock", ["rock", "rock and roll"], 1),
    Case("baroque", ["rock"], 0),
    Case("Iranian", ["Iran"], 1),
    # Short aliases of real rows, such as country codes, stand in nearly everything.
    Case("Spain", INDIA, 1),
    Case("He was born in Delhi.", INDIA, 1),  # "in" is a whole word, too
    Case("Kenya", INDIA, 0),
    Case("\U0001f1ee\U0001f1f3", INDIA, 1),
    Case("Washington", ["W"], 1),
    # Unicode: letters are compared as they are written.
    Case("\u00c6thelred", ["\u00c6thelred"], 1),
    Case("\u00e6thelred", ["\u00c6thelred"], 1),
    Case("Aethelred", ["\u00c6thelred"], 0),
    Case("Jose", ["Jos\u00e9"], 0),
    Case("Jose\u0301", ["Jos\u00e9"], 0),  # composed or not is not normalised
    Case("\u0130STANBUL", ["\u0130stanbul"], 0),
    # Signs that mean something in patterns mean nothing here.
    Case("The C++ language", ["C++"], 1),
    Case("Cxx", ["C.."], 0),
    Case("a (b) c", ["(b)"], 1),
    Case("", ["Paris"], 0),
    Case("   ", ["Paris"], 0),
    Case("Paris", ["", "London"], 0),  # an empty alias is none; else everything were right
    Case("x" * 200_000 + " Paris", ["Paris"], 1),
]
# fmt: on


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{c.output[:30]!r} for {c.aliases[0]}" for c in CASES]
)
def test_verdicts(case):
    assert grade(case.output, case.aliases).score == case.published


def test_extracted_is_the_first_alias_as_it_stands_in_the_output():
    assert grade("It is new york city.", ["NYC", "New York City"]).extracted == "new york city"
    assert grade("Spain", INDIA).extracted == "in"
    assert grade("Kenya", INDIA).extracted == ""


@pytest.mark.parametrize("aliases", [[], [""], "Paris"])
def test_no_reference_is_an_error(aliases):
    """A text instead of a list would be read as one alias per letter."""
    with pytest.raises(UserError, match="a list of reference answers is needed"):
        grade("Paris", aliases)


def test_gold_of_both_layouts():
    assert gold({"possible_answers": '["politician", "pol"]'}) == ["politician", "pol"]
    assert gold({"golden_answers": ["politician", "pol"]}) == ["politician", "pol"]


@pytest.mark.parametrize(
    "row",
    [{}, {"possible_answers": "[]"}, {"possible_answers": "politician"}, {"golden_answers": [1]}],
)
def test_gold_of_anything_else_is_an_error(row):
    with pytest.raises(UserError, match="row 'x' has no list of strings"):
        gold({"id": "x", **row})


def test_time_is_linear_in_the_output():
    with processor_time(5):
        grade("a" * 1_000_000, ["a" * 500 + "b", "b" + "a" * 500])


# -- real data -----------------------------------------------------------------------------------


@needs_data
def test_gold_answers_score_100_percent():
    """Each of the accepted answers of all 1,000 rows, bare, in lower case and in a sentence."""
    rows = [json.loads(line) for line in POPQA.open()]
    assert len(rows) == 1000
    for row in rows:
        aliases = gold(row)
        assert row["metadata"]["obj"] in aliases
        for alias in aliases:
            for output in (alias, alias.lower(), f"The answer is {alias}."):
                assert grade(output, aliases).score == 1


@needs_data
def test_gold_of_the_shots_which_have_the_original_layout():
    shots = json.loads(SHOTS.read_text())
    assert len(shots) == 16
    for shot in shots:
        assert grade(shot["obj"], gold(shot)).score == 1


@needs_data
def test_wrong_answers_that_are_right():
    """The reference of the next row of the same kind as an output: 36 of 1,000 are an accepted
    answer, four more only hold one."""
    rows = [json.loads(line) for line in POPQA.open()]
    rows.sort(key=lambda row: row["metadata"]["prop"])
    lucky, accepted = {}, 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        output, aliases = other["metadata"]["obj"], gold(row)
        verdict = grade(output, aliases)
        accepted += output in aliases
        if verdict.score and output not in aliases:
            lucky[output] = verdict.extracted
    assert accepted == 36
    assert lucky == {
        "Severo-Baykalsky District": "Se",
        "Australia": "us",
        "United Methodist Church": "Church",
        "American football": "football",
    }


# -- the rule, written a second time -------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.text("abAB \u00df\u0130", max_size=12),
    st.lists(st.text("abAB\u00df\u0130", min_size=1, max_size=3), min_size=1),
)
def test_published_rule(output, aliases):
    expected = False
    for alias in aliases:
        expected = expected or output.find(alias) >= 0
        expected = expected or output.find(alias.lower()) >= 0
        expected = expected or output.find(alias[0].title() + alias[1:].lower()) >= 0
    assert grade(output, aliases).score == expected
