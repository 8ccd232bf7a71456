"""Protects what is run for HumanEval(+), where a completion is cut, and pass@k.

The canonical solutions of all 164 real problems pass as assembled here; completions cut by hand;
pass@k against hand-worked fractions, the product form, enumeration and simulation. The programs run
here are the data's own, in a plain subprocess: isolation is the sandbox's business and its tests'.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
import subprocess
import sys
from fractions import Fraction

import pytest
from helpers.data import find
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.evaluate.reply import cut
from deltalearn.evaluate.tulu3 import humaneval
from deltalearn.evaluate.tulu3.humaneval.grader import STOPS, pass_at_k, program

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humanevalplus": "humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz",
}


def problems(name: str) -> list[dict[str, str]]:
    with gzip.open(find(FILES[name]), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# -- protocol strings ----------------------------------------------------------------------------


def test_protocol_strings():
    assert set(STOPS) == {
        "\nclass",
        "\nif",
        "\nprint",
        "\n#",
        "\n" + "`" * 3,
        "<|eot_id|>",
    }
    assert (humaneval.SECONDS, humaneval.SECONDS_PLUS) == (3.0, 20.0)


# -- where a completion ends: by hand ------------------------------------------------------------

CUTS = [
    ("    return 1\n", "    return 1\n"),
    ("", ""),
    ("    return 1\n```\nThis works.", "    return 1"),
    ("```\n    return 1", "```\n    return 1"),  # a fence at the very start follows no newline
    ("\n```", ""),
    ("    return 1\n```python", "    return 1"),
    ("    return 1\n ```", "    return 1\n ```"),
    ("    return 1\n\nprint(f(2))", "    return 1\n"),
    ("    print(1)\n    return 1", "    print(1)\n    return 1"),  # indented: part of the body
    ("    x = 1\n    if x:\n        return 1", "    x = 1\n    if x:\n        return 1"),
    ("    return 1\nif __name__ == '__main__':\n    f()", "    return 1"),
    ("    return 1\n# test", "    return 1"),
    ("    # think\n    return 1", "    # think\n    return 1"),
    ("    return 1\n#", "    return 1"),
    ("    return 1\nclass A:\n    pass", "    return 1"),
    ("    return 1\nclassify = 2", "    return 1"),  # a string, not a keyword
    ("    return 1\nifs = 2", "    return 1"),
    ("    return 1\n\ndef g():\n    return 2", "    return 1\n\ndef g():\n    return 2"),
    ("    return 1\nassert f() == 1", "    return 1\nassert f() == 1"),
    ("    return 1<|eot_id|>", "    return 1"),
    ("    return '<|eot_id|>'\n# x", "    return '"),
    ("    return 1\r\n# x", "    return 1\r"),
    ("    return 1\n\n\n#\n```\nclass", "    return 1\n\n"),
    ("\nif", ""),
    ("x" * 500_000 + "\nprint", "x" * 500_000),
]


@pytest.mark.parametrize(("completion", "kept"), CUTS, ids=[repr(c[:36]) for c, _ in CUTS])
def test_cut_by_hand(completion, kept):
    assert cut(completion, STOPS) == kept


@given(
    st.lists(st.sampled_from([*STOPS, "\n", "    ", "x", "print", "`"]), max_size=12).map("".join)
)
def test_a_cut_completion_holds_no_stop_and_is_not_cut_again(completion):
    kept = cut(completion, STOPS)
    assert completion.startswith(kept)
    assert not any(stop in kept for stop in STOPS)
    assert cut(kept, STOPS) == kept
    assert kept == completion or completion[len(kept) :].startswith(STOPS)


def test_other_stops():
    assert cut("a\ndef b", ("\ndef",)) == "a"
    assert cut("a\n# b", ()) == "a\n# b"


# -- what is run ---------------------------------------------------------------------------------


def test_program_is_stub_completion_test_and_call():
    parts = ("def f(x):\n", "    return x", "def check(g):\n    assert g(1) == 1\n", "f")
    assert program(*parts) == (
        "def f(x):\n    return x\ndef check(g):\n    assert g(1) == 1\n\ncheck(f)"
    )


STUB = 'def double(x):\n    """Twice x."""\n'
TEST = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n"
RUNS = [  # completion, does it pass? Nothing is mended: no indentation, no fences, no prose.
    ("    return 2 * x\n", True),
    ("    return 2 * x", True),
    ("def double(x):\n    return x + x", True),  # the whole function again, over the stub's
    ("    import math\n    return int(math.fsum([x, x]))", True),
    ("    return helper(x)\n\ndef helper(x):\n    return 2 * x", True),
    ("    return 2 * x\n```\nThat is all.", True),  # cut
    ("    return 2 * x\nprint(undefined)", True),  # cut
    ("    return x ** 2", False),
    ("    return 6", False),
    ("return 2 * x", False),  # not indented
    ("  return 2 * x", False),  # indented otherwise than the stub
    ("", False),  # the stub alone gives None
    ("    pass", False),
    ("```python\n    return 2 * x", False),
    ("Sure! Here it is:\n    return 2 * x", False),
    ("    return 2 * x)", False),
    ("    raise SystemExit", False),
    ("    return 2 * y", False),
    ("    return '6'", False),
    ("def twice(x):\n    return 2 * x", False),  # another name
    ("    return 2 * x\nassert False", False),
]
# The check of this problem in HumanEval+ v0.1.10 unpacks the float that is asked for ("Value after
# * must be an iterable"): no correct solution passes, so that a perfect model scores 163 of 164.
BROKEN = {"humaneval": [], "humanevalplus": ["HumanEval/32"]}

RUN_ALL = """
import io, json, sys, contextlib
passed = []
for source in json.load(sys.stdin):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, {"__name__": "program"})
        passed.append(True)
    except BaseException:
        passed.append(False)
print(json.dumps(passed))
"""


def run_all(programs: list[str]) -> list[bool]:
    """Run trusted programs one after the other in one process."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    return json.loads(done.stdout)


def test_which_completions_pass():
    programs = [program(STUB, c, TEST, "double") for c, _ in RUNS]
    assert dict(zip([c for c, _ in RUNS], run_all(programs), strict=True)) == dict(RUNS)


@pytest.mark.parametrize(
    "name", ["humaneval", pytest.param("humanevalplus", marks=pytest.mark.slow)]
)
def test_canonical_solutions_pass_and_stubs_alone_do_not(name):
    rows = problems(name)
    assert len(rows) == 164
    fields = [(row["prompt"], row["test"], row["entry_point"]) for row in rows]
    right = [
        program(prompt, row["canonical_solution"], test, entry)
        for row, (prompt, test, entry) in zip(rows, fields, strict=True)
    ]
    wrong = [program(prompt, "    return None\n", test, entry) for prompt, test, entry in fields]
    ids = [row["task_id"] for row in rows]
    assert [i for i, ok in zip(ids, run_all(right), strict=True) if not ok] == BROKEN[name]
    assert [i for i, ok in zip(ids, run_all(wrong), strict=True) if ok] == []


def test_no_canonical_solution_of_humaneval_is_cut():
    """The stops are meant for what follows a solution; within one they would cost a problem."""
    for row in problems("humaneval"):
        assert cut(row["canonical_solution"], STOPS) == row["canonical_solution"]


# -- pass@k --------------------------------------------------------------------------------------

BY_HAND = [
    (1, 0, 1, Fraction(0)),
    (1, 1, 1, Fraction(1)),
    (2, 1, 1, Fraction(1, 2)),
    (2, 1, 2, Fraction(1)),
    (4, 1, 2, Fraction(1, 2)),  # 3 of the 6 pairs hold the one
    (5, 2, 3, Fraction(9, 10)),  # 1 of the 10 triples misses both
    (20, 0, 10, Fraction(0)),
    (20, 1, 10, Fraction(1, 2)),
    (20, 2, 10, Fraction(29, 38)),  # 1 - (10/20)(9/19)
    (20, 10, 10, 1 - Fraction(1, 184_756)),
    (20, 11, 10, Fraction(1)),  # any ten hold one
    (20, 20, 10, Fraction(1)),
    (20, 7, 1, Fraction(7, 20)),
]


@pytest.mark.parametrize(("n", "c", "k", "chance"), BY_HAND)
def test_pass_at_k_by_hand(n, c, k, chance):
    assert pass_at_k(n, c, k) == float(chance)


def test_pass_at_k_is_the_closed_form_exactly():
    """1 - prod_{i=n-c+1..n} (1 - k/i), the form of Chen et al., in fractions."""
    for n in range(1, 25):
        for c in range(n + 1):
            for k in range(1, n + 1):
                terms = (1 - Fraction(k, i) for i in range(n - c + 1, n + 1))
                missed = math.prod(terms, start=Fraction(1)) if n - c >= k else 0
                assert pass_at_k(n, c, k) == float(1 - missed), (n, c, k)


def test_pass_at_k_counts_the_subsets():
    for n, c, k in [(6, 2, 3), (7, 1, 4), (8, 3, 2), (9, 4, 5)]:
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_is_unbiased_in_simulation():
    """Samples pass with p = 0.1: the mean of pass@10 over problems is 1 - 0.9^10 = 0.6513.

    40,000 problems; the standard deviation of one is 0.30, the standard error 0.0015.
    """
    draw = random.Random(0)
    counts = [sum(draw.random() < 0.1 for _ in range(20)) for _ in range(40_000)]
    mean = math.fsum(pass_at_k(20, c, 10) for c in counts) / len(counts)
    assert mean == pytest.approx(1 - 0.9**10, abs=0.006)


def test_pass_at_k_of_many_samples_is_exact():
    """C(5000, 2500) has 1,504 digits; the chance is 1 - 1/2 * 2499/4999."""
    assert pass_at_k(5000, 2, 2500) == float(1 - Fraction(1, 2) * Fraction(2499, 4999))


@pytest.mark.parametrize(
    ("n", "c", "k", "what"),
    [
        (5, 6, 1, "6 of 5"),
        (5, -1, 1, "-1 of 5"),
        (5, 1, 6, "pass@6"),
        (5, 1, 0, "pass@0"),
        (0, 0, 1, "of 0"),
    ],
)
def test_impossible_counts_are_refused(n, c, k, what):
    with pytest.raises(ValueError, match=what):
        pass_at_k(n, c, k)
