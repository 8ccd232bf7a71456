"""Answers of MATH as plain strings: the normalisation of Minerva.

Source: appendix D of Lewkowycz et al. 2022, arXiv 2206.14858, which published scores use. lm_eval
has its lists of words, and has mended what is done with them (words inside words, lists of
numbers); `normalise` is the original, mistakes included: "ft" makes "\\le" of "\\left", and "1,2"
is 12. Both sides go through it, so that it costs a right answer only where one of them has the
"\\left".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNWRAPPED = [
    (re.compile(r"(.*?)(\$)(.*?)(\$)(.*)"), r"$\3$"),
    (re.compile(r"(\\text\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\textbf\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\overline\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\boxed\{)(.*)(\})"), r"\2"),
    # \frac12 -> \frac{1}{2}, \sqrt2 -> \sqrt{2}
    (re.compile(r"(frac)([^{])(.)"), r"frac{\2}{\3}"),
    (re.compile(r"(sqrt)([^{])"), r"sqrt{\2}"),
]


def normalise(answer: str, replaced: Iterable[tuple[str, str]], removed: Iterable[str]) -> str:
    """`answer` without what stands before its last "=", units, wrappers, spaces and dollars.

    Args:
        answer: As it stands in an output or a solution.
        replaced: Minerva's substitutions, which lm_eval has as SUBSTITUTIONS.
        removed: Minerva's units and the like, which lm_eval has as REMOVED_EXPRESSIONS.

    Returns:
        The normalised answer.
    """
    answer = answer.split("=")[-1]
    for before, after in replaced:
        answer = answer.replace(before, after)
    for word in removed:
        answer = answer.replace(word, "")
    for pattern, kept in UNWRAPPED:
        answer = pattern.sub(kept, answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return digits if digits.isdigit() else answer
