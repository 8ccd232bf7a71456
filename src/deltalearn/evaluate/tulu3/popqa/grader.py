"""PopQA: some alias of the reference stands in the output.

Source: `popqa::tulu` of OLMES, after Mallen et al. 2023, arXiv 2212.10511. A substring is enough:
the alias "in" of India is found in "Spain". The output is not lower-cased, so "PARIS" is not
"Paris", but "paris" is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.sources import NoData


def grade(output: str, aliases: Sequence[str]) -> Grade:
    """1 if an alias, as it is, lower-cased or capitalised, is a substring of `output`, else 0.

    aliases: the reference and its other names; empty ones are passed over. `extracted` is the
    first that was found, as it stands in the output.
    UserError if there is no alias.
    """
    names = [alias for alias in aliases if alias]
    if isinstance(aliases, str) or not names:
        raise UserError(f"PopQA: a list of reference answers is needed, not {aliases!r}")
    for name in names:
        for form in (name, name.lower(), name.capitalize()):
            if form in output:
                return Grade(1.0, form)
    return Grade(0.0, "")


def gold(row: Mapping[str, Any]) -> list[str]:
    """All accepted answers of a row of PopQA, the reference among them.

    Read from `possible_answers` (a JSON list in a string: the original data), or from
    `golden_answers` (a list: FlashRAG's export). NoData if the row has neither.
    """
    found = row.get("possible_answers", row.get("golden_answers"))
    try:
        found = json.loads(found) if isinstance(found, str) else found
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(a, str) for a in found):
        raise NoData(
            f"PopQA: row {row.get('id')!r} has no list of strings in 'possible_answers' or "
            "'golden_answers'"
        )
    return found
