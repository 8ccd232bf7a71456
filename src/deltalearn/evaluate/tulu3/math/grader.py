"""MATH: some answer that the output gives is equivalent to the boxed one of the solution.

Source: `minerva_math::tulu` of OLMES, metric exact_match_flex. Extraction and the string
equivalence of Hendrycks et al. 2021 (arXiv 2103.03874) are lm_eval's; the normalisation is
Minerva's original (minerva.py), and sympy runs in a process of its own (symbolic.py).
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.examples import published
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.math import minerva, symbolic

NO_ANSWER = "[invalidanswer]"
OUTPUT = 50_000  # characters, the last ones, that are read: far beyond the 1,024 tokens allowed


def grade(output: str, solution: str) -> Grade:
    """1 if an answer in `output` is equivalent to the boxed one of `solution`, else 0.

    All of `answers` count, or the whole output where there is none (lm_eval's exact_match has only
    Minerva's final sentence). An answer of more than `symbolic.LENGTH` characters is wrong.
    UserError if `solution` has no boxed answer, or if lm_eval or sympy is missing.
    """
    expected = gold(solution)
    output = output[-OUTPUT:]
    found = answers(output)
    for answer in found or [_normalise(output)]:
        if equivalent(answer, expected):
            return Grade(1.0, answer)
    return Grade(0.0, found[0] if found else "")


def gold(solution: str) -> str:
    """The last boxed answer of a reference solution, normalised. UserError if there is none."""
    answer = _boxed(solution)
    if not answer or not answer[0].strip():
        raise UserError(f"MATH: no \\boxed{{...}} in the reference solution {solution[-80:]!r}")
    return _normalise(answer[0])


def answers(output: str) -> list[str]:
    """Find what stands in `output` as an answer, normalised.

    That of Minerva's final sentence and the last boxed one; if there is neither, what is between
    the last two dollar signs; none without those.
    """
    final = _lm_eval("minerva_math").get_unnormalized_answer(output)
    said = [] if final == NO_ANSWER else [final]
    found = [_normalise(answer) for answer in (*said, *_boxed(output))]
    if not found and output.count("$") > 1:
        found.append(_normalise(output.rsplit("$", 2)[1]))
    return found


def equivalent(a: str, b: str) -> bool:
    """Compare two normalised answers: as text, by the string equivalence of Hendrycks et al., and
    by sympy.

    UserError if lm_eval or sympy is missing.
    """
    if max(len(a), len(b)) > symbolic.LENGTH:
        return False
    return a == b or _lm_eval("hendrycks_math").is_equiv(a, b) or symbolic.equal(a, b)


def _boxed(text: str) -> list[str]:
    """What the last \\boxed holds; nothing if there is none, or it is not closed."""
    lm_eval = _lm_eval("minerva_math")
    try:
        box = lm_eval.last_boxed_only_string(text)
        return [] if box is None else [lm_eval.remove_boxed(box)]
    except AssertionError:  # \fbox, or "\boxed" with something else than a brace after it
        return []


def _normalise(answer: str) -> str:
    if len(answer) > symbolic.LENGTH:  # equal to nothing; the patterns' time grows quadratically
        return answer
    return minerva.normalise(answer, *_words())


@cache
def _words() -> list[Any]:
    """What Minerva replaces and what it removes, as published."""
    lists = _lm_eval("minerva_math")
    return published("minerva/words", [lists.SUBSTITUTIONS, lists.REMOVED_EXPRESSIONS])


def _lm_eval(task: str) -> ModuleType:
    """The functions of lm_eval's task; imported late, it takes a second."""
    try:
        return import_module(f"lm_eval.tasks.{task}.utils")
    except (ImportError, AssertionError) as error:  # AssertionError: another version of antlr4
        raise UserError(
            f"MATH is graded with lm_eval and sympy ({str(error).splitlines()[0]}); "
            "pip install -e '.[evaluate]'"
        ) from error
