"""GSM8K: the last number of the output is the reference number.

Source: `gsm8k::tulu` of OLMES. Its quirks are kept: a sign is kept only for decimals,
so -10 and 10 are the same answer, and answers are compared as text, so 18.00 is not 18.
"""

from __future__ import annotations

import re

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.grade import Grade

COMMA = re.compile(r"(\d),(\d)")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
# A minus before the number or its dollar sign, but not one that subtracts: 16-10 ends in 10.
SIGNED_NUMBER = re.compile(r"((?:(?<![\w.)\]}])[-\u2212])?)\$?(\d*\.\d+|\d+)")


def grade(output: str, answer: str) -> Grade:
    """1 if the last number of `output` is that of `answer`, else 0.

    answer: the data's, with its solution ("... #### 18") or without ("18").
    UserError if `answer` has no number.
    """
    found = last_number(output)
    return Grade(float(found == gold(answer)), found)


def gold(answer: str) -> str:
    """The number after "####" (the whole text without it), written as `grade` compares it.

    UserError if there is none.
    """
    number = last_number(answer.split("####")[-1])
    if not number:
        raise UserError(
            f"GSM8K: no number in the reference answer {answer[-80:]!r}; "
            "expected one that ends in '#### 18'"
        )
    return number


def last_number(text: str, *, keep_sign: bool = False) -> str:
    """The last number of `text` as it is written, less the commas between digits; "" if none.

    As published no digit serves two commas: "1,2,3" becomes "12,3", and its last number is 3.
    keep_sign: whole numbers keep their minus, for scorers of other questions (published: they lose
    it).
    """
    text = COMMA.sub(r"\1\2", text)
    if not keep_sign:
        numbers = NUMBER.findall(text)
        return numbers[-1] if numbers else ""
    signed = SIGNED_NUMBER.findall(text)
    return ("-" if signed[-1][0] else "") + signed[-1][1] if signed else ""
