"""From a doc and what the model gave for it to a score; called by lm_eval and by our own tables."""

from __future__ import annotations

import math as mathematics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from deltalearn.evaluate.graders import bbh as bbh_grader
from deltalearn.evaluate.graders import code
from deltalearn.evaluate.graders import drop as drop_grader
from deltalearn.evaluate.graders import gsm8k as gsm8k_grader
from deltalearn.evaluate.graders import ifeval as ifeval_grader
from deltalearn.evaluate.graders import math as math_grader
from deltalearn.evaluate.graders import mmlu as mmlu_grader
from deltalearn.evaluate.graders import popqa as popqa_grader
from deltalearn.evaluate.graders import truthfulqa as truthfulqa_grader
from deltalearn.evaluate.graders.grade import Grade
from deltalearn.evaluate.sandbox import Sandbox
from deltalearn.evaluate.tulu3.docs import choices, gold
from deltalearn.evaluate.tulu3.sources import Row

Results = Sequence[Any]  # lm_eval's: (log-likelihood, greedy) of each choice, or [output]
Grader = Callable[[Row, Results], Grade]


def _mmlu_mc(item: Row, results: Results) -> Grade:
    """The first letter of the highest log-likelihood."""
    values = [value for value, _ in results]
    letter = "ABCD"[values.index(max(values))]
    return Grade(float(letter == gold(item)), letter)


def _truthfulqa(item: Row, results: Results) -> Grade:
    """MC2; extracted is the likeliest choice."""
    values = [value for value, _ in results]
    known = [(v, label) for v, label in zip(values, gold(item), strict=True) if label is not None]
    score = truthfulqa_grader.mc2([v for v, _ in known], [label for _, label in known])
    return Grade(score, choices(item)[values.index(max(values))])


GRADERS: dict[str, Grader] = {
    "mmlu_mc": _mmlu_mc,
    "truthfulqa": _truthfulqa,
    "mmlu_cot": lambda item, results: mmlu_grader.grade(results[0], gold(item)),
    "popqa": lambda item, results: popqa_grader.grade(results[0], gold(item)),
    "math": lambda item, results: math_grader.grade(results[0], gold(item)),
    "gsm8k": lambda item, results: gsm8k_grader.grade(results[0], gold(item)),
    "bbh": lambda item, results: bbh_grader.grade(results[0], gold(item), item["stratum"]),
    "drop": lambda item, results: drop_grader.grade(results[0], gold(item)),
    "ifeval": lambda item, results: ifeval_grader.grade(
        results[0], gold(item)["instructions"], gold(item)["arguments"]
    ),
}


def _scorer(name: str) -> Callable[[Row, Results], dict[str, float]]:
    def score(item: Row, results: Results) -> dict[str, float]:
        return {"score": GRADERS[name](item, results).score}

    return score


# What the YAML files name.
mmlu_mc, mmlu_cot, popqa, truthfulqa, math, gsm8k, bbh, drop, ifeval = (
    _scorer(name)
    for name in (
        "mmlu_mc", "mmlu_cot", "popqa", "truthfulqa", "math", "gsm8k", "bbh", "drop", "ifeval",
    )
)  # fmt: skip


# -- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodePolicy:
    """allow: run generated programs, isolated. unsafe: also where nothing isolates them."""

    allow: bool = False
    unsafe: bool = False


# lm_eval alone asks for consent by itself (--confirm_run_unsafe_code); our command sets its own.
code_policy = CodePolicy(allow=True)
PASS_AT = 10


@cache
def _sandbox(policy: CodePolicy) -> Sandbox:
    return Sandbox(allow=policy.allow, unsafe=policy.unsafe)


def humaneval(item: Row, results: Results) -> dict[str, float]:
    """pass@10 of the samples, and the share that passes. HumanEval's tests."""
    return _pass_at_10("humaneval", item, results[0])


def humanevalplus(item: Row, results: Results) -> dict[str, float]:
    """pass@10 of the samples, and the share that passes. HumanEval+'s tests."""
    return _pass_at_10("humanevalplus", item, results[0])


def _pass_at_10(name: str, item: Row, outputs: Sequence[str]) -> dict[str, float]:
    tests = gold(item)
    programs = [
        code.program(item["question"], code.cut_at_stops(o), tests["test"], tests["entry_point"])
        for o in outputs
    ]
    outcomes = _sandbox(code_policy).run_programs(programs, timeout=code.SECONDS[name])
    passed = sum(outcome.passed for outcome in outcomes)
    score = code.pass_at_k(len(outputs), passed, min(PASS_AT, len(outputs)))
    return {"score": score, "passed": passed / len(outputs)}


# -- what is judged apart ------------------------------------------------------------------------


def alpaca_eval(item: Row, results: Results) -> dict[str, float]:
    """No score before a judge has read it; the length in characters."""
    return {"score": mathematics.nan, "characters": float(len(results[0]))}
