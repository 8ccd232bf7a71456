"""Protects the verdicts on GSM8K: which number of an output counts, and when it is the right one.

Gold answers of the real data, a table of tricky outputs decided by hand, and lm_eval's own filter
`flexible-extract` of `gsm8k_cot`, read from its task file: where it differs is listed with why.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from helpers.data import DATA
from helpers.patience import processor_time
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.gsm8k.grader import gold, grade, last_number

needs_data = pytest.mark.data("gsm8k")


def rows(split: str) -> list[str]:
    return [json.loads(line)["answer"] for line in (DATA / "gsm8k" / f"{split}.jsonl").open()]


# -- by hand -------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An output, the reference, the published verdict, and lm_eval's where it is another one."""

    output: str
    answer: str
    published: int
    lm_eval: int | None = None


# fmt: off
CASES = [
    Case("So the answer is 18.", "18", 1),
    Case("18", "She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", 1),
    Case("#### 18", "18", 1),
    Case("The answer is 18. I checked it with 2 methods.", "18", 0),  # the last number counts
    Case("The answer is 19, no, 18", "18", 1),
    Case("16 - 3 - 4 = 9. 9 * 2 = 18 dollars", "18", 1),
    Case("Step 1: 18\nStep 2: done", "18", 0),
    Case("eighteen", "18", 0),
    Case("", "18", 0),
    Case("no number at all.", "18", 0),
    # Decimals are compared as text.
    Case("She earns $18.00", "18", 0),
    Case("The answer is 18.0", "18", 0),
    Case("The answer is 18.5", "18", 0),
    Case("It costs .5", "0.5", 0),
    Case("It costs 0.50", "0.5", 0),
    # Thousands.
    Case("2,125", "2125", 1),
    Case("2125", "2,125", 1),
    Case("The total is $1,450,000.", "1,450,000", 1),
    Case("1 450 000", "1,450,000", 0, 0),
    Case("The sides are 3,4", "4", 0),  # becomes 34
    Case("1,2,3", "3", 1, 0),  # one pass: "12,3"; lm_eval takes away all commas: 123
    # Money, units, mark-up.
    Case("Answer: $18", "18", 1),
    Case("Answer: 18$", "18", 1),
    Case("Answer: **18**", "18", 1),
    Case(r"Answer: $\boxed{18}$", "18", 1),
    Case(r"Answer: \(18\)", "18", 1),
    Case("18% of it", "18", 1),
    Case("18 eggs/day", "18", 1),
    Case("18eggs", "18", 1),
    Case("It takes 18 m^2", "18", 0),  # the exponent is the last number
    Case("from 10-18", "18", 1, 0),  # lm_eval reads a range as minus 18
    Case("1/2", "2", 1),  # of a fraction, what is below
    Case("1.8e1", "18", 0),
    Case("...", "18", 0),
    Case("The answer is 18...", "18", 1, 0),  # lm_eval extracts "18..." and takes one dot away
    Case("The answer is 18 ...", "18", 1, 0),  # lm_eval extracts "..."
    Case("The answer is 18, $$.", "18", 1, 0),  # lm_eval extracts "$$."
    Case("3.5.18", "18", 0, 0),  # 3.5 and .18
    # Signs: whole numbers lose theirs, decimals keep it.
    Case("The answer is -10", "#### -10", 1),
    Case("The answer is 10", "#### -10", 1, 0),
    Case("The answer is -18", "18", 1, 0),
    Case("16-18", "18", 1, 0),  # subtracts
    Case("The profit is -$10", "-10", 1),
    Case("The profit is \u221210", "-10", 1, 0),  # a typographic minus is no sign for lm_eval
    Case("The answer is -1.5", "1.5", 0),
    Case("The answer is +1.5", "1.5", 0, 1),  # published: a plus of a decimal is kept too
    # Other digits than 0-9 are numbers for the pattern, and not the reference's text.
    Case("\u0661\u0668", "18", 0),
    Case("\uff11\uff18 \U0001f600", "18", 0),
    # Long.
    Case("1" * 100_000, "1", 0),
    Case("I think " * 20_000 + "18", "18", 1),
]
# fmt: on
ids = [f"{c.output[:40]!r} for {c.answer[-8:]}" for c in CASES]


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_verdicts(case):
    assert grade(case.output, case.answer).score == case.published


@pytest.mark.parametrize(
    "text, published, signed",
    [
        ("a 1,234 b", "1234", "1234"),
        ("-5", "5", "-5"),
        ("-5.5", "-5.5", "-5.5"),
        ("x = -5", "5", "-5"),
        ("(-5)", "5", "-5"),
        ("x-5", "5", "5"),
        ("(3)-5", "5", "5"),
        ("-$1,000.50", "1000.50", "-1000.50"),
        ("$-5", "5", "-5"),
        ("+5", "5", "5"),
        ("5.", "5", "5"),
        ("none", "", ""),
    ],
)
def test_last_number(text, published, signed):
    assert last_number(text) == published
    assert last_number(text, keep_sign=True) == signed


def test_extracted_is_the_number_found():
    assert grade("It is $1,200.", "1200").extracted == "1200"
    assert grade("It is wrong: 7", "1200").extracted == "7"
    assert grade("no idea", "1200").extracted == ""


def test_gold_is_what_stands_after_the_marks():
    """The calculator marks <<...>> and earlier numbers are no answer."""
    answer = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9.\n#### 1,218"
    assert gold(answer) == "1218"
    assert gold("#### -10") == "10"


@pytest.mark.parametrize("answer", ["", "no number", "12 apples\n#### none"])
def test_a_reference_without_number_is_an_error(answer):
    with pytest.raises(UserError, match="no number in the reference answer"):
        grade("18", answer)


@pytest.mark.parametrize("piece", ["1", "1,", "-", ".", "+1.", "$-", "1.1.", "\u0661,", " "])
@pytest.mark.parametrize("keep_sign", [False, True])
def test_time_is_linear_in_the_output(piece, keep_sign):
    """300,000 characters of bait for patterns; a quadratic one would take minutes."""
    with processor_time(5):
        last_number(piece * (300_000 // len(piece)), keep_sign=keep_sign)


# -- real data -----------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("split, n", [("test", 1319), ("train", 7473)])
def test_gold_answers_score_100_percent(split, n):
    """From the whole solution and from a bare sentence."""
    answers = rows(split)
    assert len(answers) == n
    for answer in answers:
        short = answer.split("####")[-1].strip()
        assert grade(answer, answer).score == 1
        assert grade(f"So the answer is {short}.", short).score == 1


@needs_data
def test_another_answer_scores_only_where_it_is_the_same_number():
    """Each output paired with the next question: right exactly where the numbers agree."""
    answers = rows("test")
    for mine, other in zip(answers, answers[1:] + answers[:1], strict=True):
        same = re.sub(r"[-,]", "", mine.split("####")[1]) == re.sub(
            r"[-,]", "", other.split("####")[1]
        )
        assert grade(mine, other).score == same


# -- lm_eval -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flexible():
    """`flexible(output, answer)` -> 0 or 1 by lm_eval's filter and metric, as its task says."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    task = yaml.safe_load(path.read_text())
    (steps,) = [f["filter"] for f in task["filter_list"] if f["name"] == "flexible-extract"]
    assert [step["function"] for step in steps] == ["regex", "take_first"]
    pattern = RegexFilter(steps[0]["regex_pattern"], steps[0]["group_select"])
    (metric,) = task["metric_list"]
    options = {k: v for k, v in metric.items() if k.startswith(("ignore", "regexes"))}

    def score(output: str, answer: str) -> int:
        ((found,),) = pattern.apply([[output]], [{}])
        target = answer.split("####")[-1].strip()
        found = exact_match_hf_evaluate(predictions=[found], references=[target], **options)
        return int(found["exact_match"])

    return score


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_lm_eval_differs_only_where_the_table_says(case, flexible):
    expected = case.published if case.lm_eval is None else case.lm_eval
    assert flexible(case.output, case.answer) == expected


PERTURBED = {  # from a solution and its short answer to an output
    "solution": lambda solution, short: solution,
    "sentence": lambda solution, short: f"So the answer is {short}.",
    "money": lambda solution, short: f"So the answer is ${short}.",
    "bold": lambda solution, short: f"**{short}**",
    "boxed": lambda solution, short: rf"$\boxed{{{short}}}$",
    "cents": lambda solution, short: f"So the answer is {short}.00",
    "one more": lambda solution, short: f"So the answer is {int(short.replace(',', '')) + 1}.",
    "plain": lambda solution, short: f"The answer is {short.replace(',', '')}",
    "cut": lambda solution, short: solution.split("####")[0],
    "cut in the middle": lambda solution, short: solution[: len(solution) // 2],
    "a check follows": lambda solution, short: f"The answer is {short}. I used 3 steps.",
    "negated": lambda solution, short: f"The answer is -{short.lstrip('-')}.",
    "positive": lambda solution, short: f"The answer is {short.lstrip('-')}.",
    "dots": lambda solution, short: f"The answer is {short} ...",
}


# Where lm_eval differs. Questions 489 and 1113 of the test set have the answers -10 and -3; the
# published scorer has no signs, so that it takes 3 for -3, and -18 for 18.
NEGATIVE = {489, 1113}
DIFFERENT = {
    "negated": set(range(1319)) - NEGATIVE,
    "positive": NEGATIVE,
    "cut in the middle": {1113},  # the text happens to end in "Increase 3"
    "a check follows": {1113},  # the last number is the 3 of "3 steps"
    "dots": set(range(1319)),  # lm_eval takes "..." for a number
}


@needs_data
@pytest.mark.parametrize("name", PERTURBED)
def test_lm_eval_differs_on_real_outputs_only_where_it_must(name, flexible):
    """All 1,319 answers of the test set, in 14 ways."""
    answers = rows("test")
    shorts = [answer.split("####")[1].strip() for answer in answers]
    assert {i for i, short in enumerate(shorts) if short.startswith("-")} == NEGATIVE
    outputs = [PERTURBED[name](a, s) for a, s in zip(answers, shorts, strict=True)]
    ours = [grade(output, answer).score for output, answer in zip(outputs, answers, strict=True)]
    theirs = [flexible(output, answer) for output, answer in zip(outputs, answers, strict=True)]
    different = {i for i in range(len(answers)) if ours[i] != theirs[i]}
    assert different == DIFFERENT.get(name, set())


@settings(max_examples=300)
@given(st.text(alphabet="0123456789,.$-+ #a\n\u0661\u2212", max_size=40), st.integers(-99, 99))
def test_any_text_has_a_verdict(output, number):
    verdict = grade(output, f"#### {number}")
    assert verdict.score in (0, 1)
    for found in (verdict.extracted, last_number(output, keep_sign=True)):
        assert found == "" or found.lstrip("-+") in output.replace(",", "")
