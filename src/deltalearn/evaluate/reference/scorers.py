"""From a model's answer and the reference to a verdict: what people mean by "the same answer"."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.gsm8k import grader as gsm8k
from deltalearn.evaluate.tulu3.ifeval import grader as ifeval

# The last letter that is said to be the answer, else in brackets or before a dot, else alone.
SAID_LETTER = re.compile(r"(?i:answer|choice|option)(?i:\s+is)?[:\s*]*\(?([A-Z])\b")
MARKED = re.compile(r"(?<![A-Za-z])([A-Z])(?:[).:]|$)", re.MULTILINE)
ALONE = re.compile(r"(?<![A-Za-z'’])([A-Z])(?![A-Za-z'’])")


@dataclass(frozen=True)
class Scorer:
    """A named way to compare.

    Attributes:
        title: What results call the metric.
        grade: From (output, reference) to a verdict. UserError if the reference is unfit for it.
        whole: Whether an answer that was cut at max_tokens is wrong whatever it says.
    """

    title: str
    grade: Callable[[str, str], Grade]
    whole: bool = False


def scorer(name: str, pattern: str | None = None) -> Scorer:
    """The scorer of that name.

    Args:
        name: One of the recipe's `scorer`.
        pattern: Of `regex`: what is looked for in the output; its first group, if it has one, is
            the answer.
    """
    if name == "judge":
        raise UserError(
            "scorer: judge compares nothing yet; AlpacaEval (`benchmarks: [alpaca_eval]` with a "
            "`judge`) is what a judge reads, and exact, contains, last_number, letter, gsm8k, "
            "regex and ifeval read reference answers"
        )
    if name == "regex":
        return Scorer("pattern match of the greedy answer", _regex(pattern or ""))
    return SCORERS[name]


def plain(text: str) -> str:
    """Without space around it, and in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text).strip()


def _same(found: str, reference: str) -> Grade:
    return Grade(float(found == plain(reference)), found)


def _exact(output: str, reference: str) -> Grade:
    return _same(plain(output), reference)


def _contains(output: str, reference: str) -> Grade:
    wanted = plain(reference)
    inside = wanted.casefold() in plain(output).casefold()
    return Grade(float(inside), wanted if inside else "")


def _last_number(output: str, reference: str) -> Grade:
    found, wanted = (gsm8k.last_number(text, keep_sign=True) for text in (output, reference))
    if not wanted:
        raise UserError(f"scorer last_number: no number in the reference {reference[-80:]!r}")
    return Grade(float(found != "" and Decimal(found) == Decimal(wanted)), found)


def _letter(output: str, reference: str) -> Grade:
    wanted = plain(reference).strip("().").upper()
    if not re.fullmatch("[A-Z]", wanted):
        raise UserError(f"scorer letter: the reference {reference[:80]!r} is no letter")
    found = SAID_LETTER.findall(output) or MARKED.findall(output) or ALONE.findall(output)
    return Grade(float(bool(found) and found[-1] == wanted), found[-1] if found else "")


def _regex(pattern: str) -> Callable[[str, str], Grade]:
    compiled = re.compile(pattern)

    def grade(output: str, reference: str) -> Grade:
        found = list(compiled.finditer(output))
        if not found:
            return Grade(0.0, "")
        last = found[-1]
        return _same(plain((last.group(1) if compiled.groups else last.group()) or ""), reference)

    return grade


def _ifeval(output: str, reference: str) -> Grade:
    try:
        wanted: Any = json.loads(reference)
        instructions, arguments = wanted["instruction_id_list"], wanted["kwargs"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"scorer ifeval: the reference {reference[:80]!r} is no JSON object with "
            "instruction_id_list and kwargs"
        ) from error
    return ifeval.grade(output, instructions, arguments)


SCORERS = {
    "exact": Scorer("exact match of the greedy answer", _exact, whole=True),
    "contains": Scorer("reference in the greedy answer", _contains),
    "last_number": Scorer("last number of the greedy answer", _last_number),
    "letter": Scorer("letter of the greedy answer", _letter),
    "gsm8k": Scorer("last number of the greedy answer, as GSM8K has it", gsm8k.grade),
    "ifeval": Scorer("instructions followed by the greedy answer, loose", _ifeval),
}
