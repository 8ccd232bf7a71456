"""Protects verdicts on real problems: right solutions pass in the sandbox, planted wrong ones fail.

HumanEval and HumanEval+, each with the published solution, with a body that returns nothing, with
answers that are off by one, and with one constant or comparison of the solution changed.
"""

from __future__ import annotations

import ast
import textwrap

import pytest
from helpers.sandboxed import problems, sandbox

from deltalearn.evaluate.sandbox import Outcome, Status
from deltalearn.evaluate.tulu3.humaneval.grader import program

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humanevalplus": "humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz",
}
SECONDS = 20.0  # HumanEval+: some published solutions take 7 s of their own tests
# The test of HumanEval/32 in the released HumanEval+ (v0.1.10) unpacks the number that find_zero
# returns, so nothing passes it: a score of 164 of 164 is out of reach with the data as it is.
BROKEN, MENDED = "_poly(*candidate(*inp), inp)", "_poly(*inp, candidate(*inp))"

pytestmark = pytest.mark.slow


def outcomes(rows: list[dict[str, str]], bodies: list[str]) -> list[Outcome]:
    programs = [
        program(row["prompt"], body, row["test"], row["entry_point"])
        for row, body in zip(rows, bodies, strict=True)
    ]
    return sandbox().run_programs(programs, timeout=SECONDS)


def test_all_published_solutions_of_humaneval_pass():
    rows = problems(FILES["humaneval"])
    found = outcomes(rows, [row["canonical_solution"] for row in rows])
    assert len(found) == 164
    assert [(r["task_id"], o) for r, o in zip(rows, found, strict=True) if not o.passed] == []


def test_all_published_solutions_of_humaneval_plus_pass():
    rows = problems(FILES["humanevalplus"])
    assert [r["task_id"] for r in rows if BROKEN in r["test"]] == ["HumanEval/32"]
    rows = [{**row, "test": row["test"].replace(BROKEN, MENDED)} for row in rows]
    found = outcomes(rows, [row["canonical_solution"] for row in rows])
    assert len(found) == 164
    assert [(r["task_id"], o) for r, o in zip(rows, found, strict=True) if not o.passed] == []


def test_the_broken_test_of_humaneval_plus_is_why_nothing_passes_it():
    (row,) = (r for r in problems(FILES["humanevalplus"]) if BROKEN in r["test"])
    (found,) = outcomes([row], [row["canonical_solution"]])
    assert found.status is Status.FAILED
    assert found.detail == "TypeError: Value after * must be an iterable, not float"


@pytest.mark.parametrize("name", FILES)
def test_a_body_that_returns_nothing_never_passes(name):
    rows = problems(FILES[name])
    found = outcomes(rows, ["    return None\n"] * len(rows))
    assert [r["task_id"] for r, o in zip(rows, found, strict=True) if o.passed] == []


OFF_BY_ONE = """

def _off_by_one(answer):
    if answer is None or isinstance(answer, (bool, dict)):
        return not answer
    if isinstance(answer, (list, tuple, str)):
        return answer[:-1] if answer else [0]
    return answer + 1


_right = {name}


def {name}(*given):
    return _off_by_one(_right(*given))
"""


@pytest.mark.parametrize("name", FILES)
def test_answers_off_by_one_never_pass(name):
    rows = problems(FILES[name])
    rows = [{**row, "test": row["test"].replace(BROKEN, MENDED)} for row in rows]
    bodies = [r["canonical_solution"] + OFF_BY_ONE.format(name=r["entry_point"]) for r in rows]
    found = outcomes(rows, bodies)
    assert [r["task_id"] for r, o in zip(rows, found, strict=True) if o.passed] == []


def mutant(body: str) -> str | None:
    """`body` with its first whole number one larger, or its first < or > not strict."""
    tree = ast.parse("def f():\n" + textwrap.indent(textwrap.dedent(body), "    "))
    strict = {ast.Lt: ast.LtE, ast.Gt: ast.GtE}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in strict:
            node.ops[0] = strict[type(node.ops[0])]()
        else:
            continue
        return textwrap.indent("\n".join(map(ast.unparse, tree.body[0].body)), "    ") + "\n"
    return None


def test_most_solutions_with_one_sign_changed_fail():
    """Not all: a changed start of a search, say, finds the same. Measured: 109 of 132 fail."""
    rows = problems(FILES["humaneval"])
    changed = [(row, made) for row in rows if (made := mutant(row["canonical_solution"]))]
    found = sandbox().run_programs(
        [program(r["prompt"], body, r["test"], r["entry_point"]) for r, body in changed]
    )
    failed = sum(not outcome.passed for outcome in found)
    assert len(changed) > 120
    assert failed / len(changed) > 0.8
