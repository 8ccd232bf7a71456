"""Protects graders against published ones, on thousands of random answers that mean harm.

One grammar of fragments (numbers in every dress, letters, boxes, markers of answers, odd white
space, scripts, nonsense) makes the answers, seeded. Where the published grader of lm_eval is the
rule, every verdict is equal; where the suite's rule is another one, the difference is stated as a
predicate of the answer, so that a new kind of difference fails. What has no published grader
installed (OLMES's own of PopQA, MMLU's letters, BBH's fallbacks) is held to tables in the files
beside this.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

from deltalearn.evaluate.reference.scorers import plain, scorer
from deltalearn.evaluate.reply import cut
from deltalearn.evaluate.tulu3.bbh import grader as bbh
from deltalearn.evaluate.tulu3.drop import grader as drop
from deltalearn.evaluate.tulu3.gsm8k import grader as gsm8k
from deltalearn.evaluate.tulu3.humaneval import grader as humaneval
from deltalearn.evaluate.tulu3.truthfulqa.grader import mc2

TASKS = Path(lm_eval.__file__).parent / "tasks"
NUMBERS = [
    "18", "18.0", "18.00", "0", "3", "-10", "+4", "1,234", "1,234.50", "$5", "$5.50", "007",
    "12,3", "3.", ".5", "10-18", "1/2", "50%", "1e3", "\u0661", "\u22123", "2024-05-06",
]  # fmt: skip
WORDS = [
    "Paris", "the fox", "An answer", "not", "is", "yes", "No.", "true", "invalid", "a", "THE",
    "naïve", "Großstadt", "你好", "e\u0301", "\u00e9", "I", "B", "(A)", "(B).", "A)", "C:", "[D]",
    "answer:", "Answer: ", "The answer is ", "the answer is ", "So the answer is ", "####",
    "#### ", "Therefore, ", "\\boxed{18}", "$18$", "**", "```python\n", "\n```", "\nclass A:",
    "\n# x", "\nif x", "\nprint(1)", "<b>", "]", ")", "“", "”",
]  # fmt: skip
SPACES = ["", " ", " ", "\n", "\n\n", "\t", "\u00a0", "\r\n", "... ", ". ", ", ", "-"]


def answers(seed: str, count: int, *pools: list[str]) -> list[str]:
    """Random texts of these fragments, and the empty one."""
    rng = random.Random(seed)
    made = [""]
    for _ in range(count):
        parts = [
            rng.choice(rng.choice(pools)) + rng.choice(SPACES) for _ in range(rng.randint(1, 7))
        ]
        made.append("".join(parts))
    return made


@pytest.fixture(scope="module")
def flexible():
    """`flexible(output, number)` -> the verdict of GSM8K's task in lm_eval."""
    task = yaml.safe_load((TASKS / "gsm8k" / "gsm8k-cot.yaml").read_text())
    (steps,) = [f["filter"] for f in task["filter_list"] if f["name"] == "flexible-extract"]
    pattern = RegexFilter(steps[0]["regex_pattern"], steps[0]["group_select"])
    (metric,) = task["metric_list"]
    options = {k: v for k, v in metric.items() if k.startswith(("ignore", "regexes"))}

    def score(output: str, number: str) -> float:
        ((found,),) = pattern.apply([[output]], [{}])
        match = exact_match_hf_evaluate(predictions=[found], references=[number], **options)
        return float(match["exact_match"])

    return score


# Dresses of numbers that the two rules read in two ways: signs, chains of commas, dots alone,
# digits of other scripts, a dot that ends or begins a number, exponents.
DRESSED = re.compile(
    r"[-+\u2212/]\d|\d-|\d,\d(?!\d\d)|\.\.|\$(?!\d)|\.\d|\d\.|[^\x00-\x7f]|\d,\D|,$|1e3"
)


def test_gsm8k_is_lm_evals_but_for_dressed_numbers(flexible):
    different = 0
    for output in answers("gsm8k", 1500, NUMBERS, WORDS):
        for number in ("18", "3"):
            ours = gsm8k.grade(output, f"#### {number}").score
            if ours != flexible(output, number):
                assert DRESSED.search(output), output
                different += 1
    assert different, "or the predicate above is idle"


def test_last_number_is_gsm8ks_where_there_is_no_sign(flexible):
    """By value, so that 18.00 is 18 here, and a sign counts."""
    grade = scorer("last_number").grade
    for output in answers("number", 1500, NUMBERS, WORDS):
        found = gsm8k.grade(output, "#### 18")
        value = grade(output, "18").score
        if re.search(r"[-\u2212]|\d\.", output) is None:
            assert value == found.score, output


def test_exact_is_lm_evals_exact_match_of_trimmed_texts():
    grade = scorer("exact").grade
    outputs = answers("exact", 400, NUMBERS, WORDS)
    for output in outputs:
        for reference in (output, f" {output}\n", output.lower(), "Paris"):
            theirs = exact_match_hf_evaluate(
                predictions=[plain(output)], references=[plain(reference)]
            )
            assert grade(output, reference).score == theirs["exact_match"], (output, reference)


@pytest.mark.parametrize(
    "pattern", [r"answer is (\w+)", r"\d+", r"#### (-?[\d.,]+)", r"\(([A-D])\)"]
)
def test_regex_is_lm_evals_filter_of_the_last_match(pattern):
    grade, theirs = scorer("regex", pattern).grade, RegexFilter(pattern, -1)
    for output in answers(pattern, 800, NUMBERS, WORDS):
        ((found,),) = theirs.apply([[output]], [{}])
        ours = grade(output, "\0").extracted
        assert ours == ("" if found == "[invalid]" else plain(found)), output


def test_contains_is_what_python_says():
    grade = scorer("contains").grade
    for output in answers("contains", 500, WORDS):
        for reference in ("Paris", "THE FOX", "\u00e9", "grossstadt"):
            inside = plain(reference).casefold() in plain(output).casefold()
            assert grade(output, reference).score == inside


def test_letter_reads_every_published_way_of_saying_it():
    """As lm_eval's tasks extract it: "the answer is (B)", "(B)", "B." and "B" alone."""
    published = [r"answer is \(?([A-D])\b", r"^\(?([A-D])\)?[.:]?$"]
    grade = scorer("letter").grade
    rng = random.Random("letter")
    for text in answers("prose", 400, [w for w in WORDS if not re.search(r"\b[A-Z]\b", w)]):
        letter = rng.choice("ABCD")
        prose = re.sub(r"(?i)answer", "reply", text)
        for said in (f"{prose}\nThe answer is ({letter}).", f"{prose}\nThe answer is {letter}"):
            ((found,),) = RegexFilter(published[0], -1).apply([[said]], [{}])
            assert grade(said, found).score == 1 and found == letter, said
    for said in ("B", "(B)", "B.", "(B):", "B)"):
        ((found,),) = RegexFilter(published[1], 0).apply([[said]], [{}])
        assert grade(said, found).score == 1


def test_bbh_agrees_with_lm_eval_where_an_answer_is_said_last():
    """lm_eval's pattern has but this form; the suite reads it alike behind anything."""
    template = yaml.safe_load((TASKS / "bbh/cot_fewshot/_cot_fewshot_template_yaml").read_text())
    pattern = re.compile(template["filter_list"][0]["filter"][0]["regex_pattern"])
    gold = {"date_understanding": ["(A)", "(F)"], "boolean_expressions": ["True", "False"],
            "navigate": ["Yes", "No"], "object_counting": ["7", "12"],
            "multistep_arithmetic_two": ["-5", "123"], "formal_fallacies": ["valid", "invalid"],
            "word_sorting": ["ape bat cat"], "dyck_languages": ["] ) }"]}  # fmt: skip
    for task, targets in gold.items():
        for text in answers(task, 120, NUMBERS, WORDS):
            for target in targets:
                said = f"{text}\nSo the answer is {target}."
                theirs = pattern.findall(said)[-1]
                assert bbh.extract(said, task).strip() == theirs.strip() == target.strip()
                assert bbh.grade(said, target, task).score == 1


def test_drop_is_lm_evals_on_anything():
    utils = pytest.importorskip("lm_eval.tasks.drop.utils")
    rng = random.Random("drop")
    outputs = answers("drop", 200, NUMBERS, WORDS)
    for output in outputs:
        golds = [
            tuple(rng.choice(outputs) or "x" for _ in range(rng.randint(1, 3)))
            for _ in range(rng.randint(1, 3))
        ]
        theirs = utils.process_results({"answers": golds}, [output])["f1"]
        assert drop.grade(output, golds).score == pytest.approx(theirs, abs=1e-12), (output, golds)


def test_truthfulqa_is_the_published_share():
    """As in lm_eval's `process_results_mc2`, written out: its module needs sacrebleu and rouge."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = int(rng.integers(2, 13))
        values = rng.normal(-60, 25, size)
        labels = rng.permutation([1, 0, *rng.integers(0, 2, size - 2)])
        share = np.exp(values) / np.exp(values).sum()
        assert mc2(values.tolist(), labels.tolist()) == pytest.approx(share[labels == 1].sum())


def test_humaneval_is_cut_as_lm_eval_cuts_and_counted_as_published():
    from lm_eval.models.utils import postprocess_generated_text

    for output in answers("code", 800, WORDS):
        theirs = postprocess_generated_text(output, list(humaneval.STOPS), None)
        assert cut(output, humaneval.STOPS) == theirs
    for n, k in ((20, 10), (20, 1), (5, 5)):
        for c in range(n + 1):  # Chen et al. 2021, the product that is numerically stable
            published = (
                1.0 if n - c < k else 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
            )
            assert humaneval.pass_at_k(n, c, k) == pytest.approx(published)


def test_math_takes_all_that_lm_eval_takes():
    """Its exact_match has one way to say an answer; the suite's has that and others."""
    theirs = pytest.importorskip("lm_eval.tasks.minerva_math.utils")
    math_grader = pytest.importorskip("deltalearn.evaluate.tulu3.math.grader")
    golds = ["18", "\\frac{1}{2}", "[2,5)", "x^2+1", "(3,4)", "50\\%", "\\sqrt{2}"]
    rng = random.Random("math")
    for text in answers("math", 30, NUMBERS, WORDS):
        gold, said = rng.choice(golds), rng.choice(golds)
        doc = {
            "solution": f"So $\\boxed{{{gold}}}$.",
            "answer": theirs.normalize_final_answer(gold),
        }
        output = f"{text}\nFinal Answer: The final answer is ${said}$. I hope it is correct."
        found = theirs.get_unnormalized_answer(output)
        right = theirs.is_equiv(theirs.normalize_final_answer(found), doc["answer"])
        ours = math_grader.grade(output, doc["solution"]).score
        assert ours == 1 if right else ours == 0 or "\\boxed" in output, output


def test_ifeval_follows_lm_evals_checks():
    """All kinds that need no sentences, which are split by a model that is not here."""
    pytest.importorskip("langdetect")
    from deltalearn.evaluate.tulu3.ifeval import grader as ifeval

    ifeval._checks()
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_loose

    kinds = [
        ("punctuation:no_comma", {}),
        ("detectable_format:title", {}),
        ("detectable_format:json_format", {}),
        ("startend:quotation", {}),
        ("keywords:existence", {"keywords": ["fox", "Paris"]}),
        ("keywords:forbidden_words", {"forbidden_words": ["is"]}),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 4}),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}),
        ("startend:end_checker", {"end_phrase": "the fox"}),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}),
    ]
    dressed = [*WORDS, "P.S. bye", "* one\n", "- two\n", "[name]", "<<title>>", '"', "{}"]
    for output in answers("ifeval", 150, NUMBERS, dressed):
        for kind, arguments in kinds:
            row = InputExample(0, [kind], "a prompt", [arguments])
            theirs = test_instruction_following_loose(row, output)
            assert ifeval.verdicts(output, [kind], [arguments]) == theirs.follow_instruction_list
