"""MMLU answered in prose (CoT): the letter an output settles on.

Source: OLMES, task `mmlu:cot::summarize` of the Tülu 3 suite. The
multiple-choice variant (`mmlu:mc::tulu`) compares log-likelihoods and needs no grader.
"""

from __future__ import annotations

import re

from deltalearn.evaluate.tulu3.grade import Grade

# Of each pattern the first occurrence counts. The first three ignore case, for the letter too, so
# that "the answer is a matter of taste" is answer A: the suite's rule, kept.
_FIRST = (
    re.compile(r"(?i)therefore,?\s*the\s*answer\s*is:?\s*\(?([A-D])\b"),
    re.compile(r"(?i)answer\s*is:?\s*\(?([A-D])\b"),
    re.compile(r"(?i)([A-D])\)?\s+is\s+correct"),
    re.compile(r"\(([A-D])\)"),
)
_ALONE = re.compile(r"\b([A-D])\b")


def grade(output: str, letter: str) -> Grade:
    """1 if the letter found in `output` is `letter` ("A" to "D"), else 0; no letter is wrong.

    ValueError if `letter` is none of the above.
    """
    if letter not in ("A", "B", "C", "D"):
        raise ValueError(f"the gold letter is one of A, B, C, D, not {letter!r}")
    found = extract(output)
    return Grade(float(found == letter), found)


def extract(output: str) -> str:
    """The letter `output` answers with, "A" to "D", or "" if it has none.

    The first pattern that hits decides: "therefore, the answer is: X", "answer is: X", "X is
    correct" (in these case is ignored and a bracket may stand before X), "(X)", each at its first
    occurrence; else the last stand-alone capital of the first line that has one (there the article
    "A" is a letter like any other).
    """
    for pattern in _FIRST:
        if match := pattern.search(output):
            return match[1].upper()
    # OLMES writes this as one pattern, `.*\b([A-D])\b`; line by line it takes linear time.
    for line in output.split("\n"):
        if letters := _ALONE.findall(line):
            return letters[-1]
    return ""
