"""Protects the verdicts on DROP: F1 over bags of words, numbers that must match, the best gold.

Gold answers of the fixture, a table of tricky outputs with F1 worked by hand, and lm_eval's scorer,
which is of the same family: it must agree to the last digit on everything.
"""

from __future__ import annotations

import json

import pytest
from helpers.data import DATA
from helpers.patience import processor_time
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.drop.grader import gold, grade

DROP = DATA / "drop_fixture" / "drop.json"

needs_data = pytest.mark.data("drop_fixture/drop.json")


@pytest.fixture(scope="module")
def official():
    """`official(output, golds)` -> lm_eval's F1."""
    utils = pytest.importorskip("lm_eval.tasks.drop.utils")
    return lambda output, golds: utils.process_results({"answers": golds}, [output])["f1"]


# -- by hand -------------------------------------------------------------------------------------

TWO = [("Alice Smith", "Bob Jones")]
# fmt: off
CASES = [  # output, reference answers, F1
    # Numbers.
    ("2", [("2",)], 1.0),
    ("2.0", [("2",)], 1.0),
    ("two", [("2",)], 0.0),
    ("3", [("2",)], 0.0),
    ("2.", [("2",)], 1.0),
    ("2, I think", [("2",)], 0.5),  # 2 i think: precision 1/3, recall 1
    ("The answer is 2", [("2",)], 0.5),  # answer is 2
    ("1,000", [("1000",)], 1.0),
    ("$1000", [("1000",)], 1.0),
    ("10%", [("10",)], 1.0),
    ("3.5", [("3.5",)], 1.0),
    ("3.5.", [("3.5",)], 0.0),  # "3.5." is no number, loses all its points and is 35
    ("3.5%", [("3.5",)], 0.0),  # the same: 35
    ("$3.50", [("3.5",)], 0.0),  # 350
    ("-2", [("2",)], 1.0),  # a hyphen splits words, so a sign is lost
    ("2", [("-2",)], 1.0),
    ("38-yard", [("38",)], 0.67),  # 38 yard: precision 1/2, recall 1: 2/3
    ("38", [("38-yard",)], 0.67),
    ("38 yards", [("38-yard",)], 0.5),  # yards is not yard: 1/2 and 1/2
    ("yard", [("38-yard",)], 0.0),  # the number is missing: nothing, though a word agrees
    ("39 yard", [("38-yard",)], 0.0),
    ("2 or 3", [("3",)], 0.5),  # several answers cost precision only
    ("1e3", [("1000",)], 1.0),  # Python's idea of a number
    ("1_000", [("1000",)], 1.0),
    ("\u0662", [("2",)], 1.0),  # its digits, too
    ("nan", [("nan",)], 1.0),
    ("infinity", [("inf",)], 1.0),
    ("2\n", [("2",)], 1.0),
    ("10\nPassage:", [("10",)], 0.0),  # words part at spaces only, so this is none and no number
    ("\n2", [("2",)], 1.0),
    # Words.
    ("Philip Rivers", [("Philip Rivers",)], 1.0),
    ("rivers, philip", [("Philip Rivers",)], 1.0),
    ("Rivers", [("Philip Rivers",)], 0.67),
    ("the quarterback Philip Rivers", [("Philip Rivers",)], 0.8),  # 2/3 and 1
    ("The  Philip-Rivers!", [("Philip Rivers",)], 1.0),  # articles, spaces, hyphen, punctuation
    ("Rivers Rivers Rivers", [("Philip Rivers",)], 0.67),  # bags are sets
    ("Philip Riversides", [("Philip Rivers",)], 0.5),
    ("O'Brien", [("OBrien",)], 1.0),
    ("\u201cRivers\u201d", [("Rivers",)], 0.0),  # typographic quotes are not removed
    ("Caf\u00e9", [("cafe",)], 0.0),
    ("a", [("the",)], 1.0),  # both are empty bags
    ("", [("the",)], 1.0),
    ("the", [("Rivers",)], 0.0),
    ("", [("Rivers",)], 0.0),
    ("", [("2",)], 0.0),
    # Dates.
    ("8 May 1945", [("8 May 1945",)], 1.0),
    ("May 8, 1945", [("8 May 1945",)], 1.0),
    ("May 1945", [("8 May 1945",)], 0.8),  # one of the numbers is enough: 1 and 2/3
    ("9 May", [("8 May 1945",)], 0.0),
    ("1945-05-08", [("8 May 1945",)], 0.67),  # 1945 5 8: float takes leading zeros away
    # Several spans: the output is one, the other has no partner.
    ("Alice Smith, Bob Jones", TWO, 0.33),  # best of 2/4 and 1: 2/3, halved
    ("Alice Smith", TWO, 0.5),
    ("Bob Jones", TWO, 0.5),
    ("Alice", TWO, 0.33),
    ("Carol", TWO, 0.0),
    # Several references: the best one.
    ("2", [("3",), ("2",)], 1.0),
    ("Rivers", [("Philip Rivers",), ("P Rivers", "Tomlinson")], 0.67),
    ("Tomlinson", [("Rivers",), ("Rivers", "Tomlinson")], 0.5),
    ("", [("",), ("2",)], 0.0),  # a blank reference is passed over
    ("", [("",)], 0.0),
    # Rounding: 2 decimals, each reference on its own.
    ("b c d e f g h", [("b",)], 0.25),  # 1/7 and 1
    ("b c d e f g", [("b",)], 0.29),  # 1/6 and 1: 2/7 = .2857
    ("b", [("b", "c", "d")], 0.33),
    ("b", [("b", "c", "d", "e", "f", "g", "h", "i")], 0.12),  # 1/8 is half-way; to the even one
    ("word " * 20_000 + "2", [("2",)], 0.67),  # a bag of two
]
# fmt: on


@pytest.mark.parametrize("output, golds, expected", CASES, ids=[f"{c[0][:40]!r}" for c in CASES])
def test_verdicts(output, golds, expected):
    assert grade(output, golds).score == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("output, golds, expected", CASES, ids=[f"{c[0][:40]!r}" for c in CASES])
def test_lm_eval_agrees_on_the_table(output, golds, expected, official):
    assert official(output, golds) == grade(output, golds).score


@pytest.mark.parametrize(
    "output, score",
    [
        ("Alice Smith, Bob Jones", 0.33),
        ("Bob Jones, Carol King", 0.33),
        ("Alice Smith and Bob Jones", 0.29),  # 2/5 and 1: 4/7, halved
        ("Smith, Alice", 0.5),
    ],
)
def test_an_output_is_one_span_whatever_it_holds(output, score):
    assert grade(output, TWO).score == score


def test_rounding_is_numpys(official):
    """13 of 27 words and none of another span: 2 * 13 / 40 / 2 = .325, .33 by Python's round."""
    words = [f"w{i}" for i in range(27)]
    output, golds = " ".join(words[:13]), [(" ".join(words), "Jones")]
    assert grade(output, golds).score == official(output, golds) == 0.32


def test_extracted_is_the_output():
    assert grade(" Philip Rivers\n", [("Rivers",)]).extracted == "Philip Rivers"


@pytest.mark.parametrize("golds", [[], "Rivers", ["Rivers"], [()]])
def test_references_of_another_form_are_an_error(golds):
    """A text in place of a list would be graded letter by letter."""
    with pytest.raises(UserError, match="reference answers are lists of spans"):
        grade("Rivers", golds)


# -- the data's answers --------------------------------------------------------------------------

NONE = {"day": "", "month": "", "year": ""}


def test_gold_reads_all_validated_answers_once():
    question = {
        "answer": {"number": "", "date": NONE, "spans": ["Rivers", "Kaeding"]},
        "validated_answers": [
            {"number": "2", "date": NONE, "spans": []},
            {"number": "", "date": {"day": "8", "month": "May", "year": "1945"}, "spans": []},
            {"number": "", "date": NONE, "spans": ["Rivers", "Kaeding"]},
            {"number": "", "date": {"day": "", "month": "May", "year": ""}, "spans": []},
            {"number": "", "date": NONE, "spans": []},
        ],
    }
    assert gold(question) == [("Rivers", "Kaeding"), ("2",), ("8 May 1945",), ("May",)]


def test_gold_reads_the_hub_layout():
    question = {
        "answer": {"number": "2", "date": NONE, "spans": [], "worker_id": "", "hit_id": ""},
        "validated_answers": {
            "number": ["", "3"],
            "date": [NONE, NONE],
            "spans": [["two"], []],
            "worker_id": ["", ""],
            "hit_id": ["", ""],
        },
    }
    assert gold(question) == [("2",), ("two",), ("3",)]


def test_number_comes_before_spans_and_spans_before_date():
    date = {"day": "8", "month": "", "year": ""}
    assert gold({"answer": {"number": "0", "date": date, "spans": ["a"]}}) == [("0",)]
    assert gold({"answer": {"number": "", "date": date, "spans": ["a"]}}) == [("a",)]
    assert gold({"answer": {"number": "", "date": date, "spans": []}}) == [("8",)]
    assert gold({"answer": {"number": "4", "date": {}, "spans": []}}) == [("4",)]


@pytest.mark.parametrize(
    "answer", [None, {"number": "", "date": NONE, "spans": []}, {"spans": [""]}]
)
def test_a_question_without_reference_is_an_error(answer):
    with pytest.raises(UserError, match="question 'q7' has no reference answer"):
        gold({"query_id": "q7", "answer": answer})


def fixture() -> list[dict]:
    passages = json.loads(DROP.read_text()).values()
    return [question for passage in passages for question in passage["qa_pairs"]]


@needs_data
def test_gold_answers_score_100_percent():
    questions = fixture()
    assert len(questions) == 19
    for question in questions:
        golds = gold(question)
        for spans in golds:
            assert grade(", ".join(spans), golds).score == 1
            assert grade(f" {spans[0].upper()}.\n", golds).score == 1


@needs_data
def test_gold_is_what_lm_eval_reads():
    """The fixture has no validated answers; lm_eval wants the fields there, and a whole date."""
    utils = pytest.importorskip("lm_eval.tasks.drop.utils")
    for question in fixture():
        answer = question["answer"] | {"date": NONE | question["answer"]["date"]}
        columns = {"number": ["", "2"], "date": [NONE, NONE], "spans": [["two", "three"], []]}
        document = {"answer": answer, "validated_answers": columns}
        assert gold(document) == utils.get_answers(document)


PERTURBED = {
    "sentence": lambda text: f"The answer is {text}.",
    "trailing": lambda text: f"{text} according to the passage",
    "half": lambda text: text[: (len(text) + 1) // 2],
    "decimal": lambda text: f"{text}.0",
    "doubled": lambda text: f"{text} {text}",
    "list": lambda text: f"{text}, 2, Kansas City",
    "another line": lambda text: f"{text}\nPassage: 7",
    "upper": str.upper,
    "spaced": lambda text: " ".join(text),
}


@needs_data
@pytest.mark.parametrize("name", PERTURBED)
def test_lm_eval_agrees_on_perturbed_answers_to_every_question(name, official):
    """Each of 19 answers, perturbed, as an output for each of 19 questions."""
    golds = [gold(question) for question in fixture()]
    for mine in golds:
        output = PERTURBED[name](mine[0][0])
        for other in golds:
            assert grade(output, other).score == official(output, other)


WORDS = ["a", "the", "b", "c-d", "2", "2.0", "3", "3.5,", "1,000", "$4", "\u00e9", "nan", "-", "'"]
words = st.sampled_from([*WORDS, "\n", "2\n", ""])
span = st.lists(words, min_size=1, max_size=4).map(" ".join)


@settings(max_examples=500)
@given(span, st.lists(st.lists(span, min_size=1, max_size=4).map(tuple), min_size=1, max_size=3))
def test_lm_eval_agrees_on_anything(official, output, golds):
    assert grade(output, golds).score == official(output, golds)


@pytest.mark.parametrize("piece", ["a, ", "1 ", "-", "the ", "9", "1.", "\n", ", , "])
def test_time_is_bounded(piece):
    """100,000 characters, where at most 50 tokens are generated."""
    with processor_time(5):
        grade(piece * (100_000 // len(piece)), [("a", "b", "c"), ("4",)])
