"""Answers of MATH as plain strings: the normalisation of Minerva.

Source: appendix D of Lewkowycz et al. 2022, arXiv 2206.14858, which published scores use. lm_eval
has since mended it (words inside words, lists); `normalise` is the original, mistakes included:
"ft" makes "\\le" of "\\left", and "1,2" is 12. Both sides go through it, so that it costs a right
answer only where one of them has the "\\left".
"""

from __future__ import annotations

import re

REPLACED = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
]
# fmt: off
REMOVED = [
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units",
    r"\ldots", "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm",
    "pounds", "meters", "meals", "edges", "students", "childrentickets", "multiples", r"\text{s}",
    r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}", r"\text{}",
    r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots",
]
# fmt: on
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


def normalise(answer: str) -> str:
    """`answer` without what stands before its last "=", units, wrappers, spaces and dollars."""
    answer = answer.split("=")[-1]
    for before, after in REPLACED:
        answer = answer.replace(before, after)
    for word in REMOVED:
        answer = answer.replace(word, "")
    for pattern, kept in UNWRAPPED:
        answer = pattern.sub(kept, answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return digits if digits.isdigit() else answer
