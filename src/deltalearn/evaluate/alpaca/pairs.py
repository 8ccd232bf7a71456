"""A model's responses beside those of the reference, aligned by the text of the instruction."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.judge.verdicts import Pair, clean

MAX_CHARS = 70  # characters of an instruction in an error


@dataclass(frozen=True, slots=True)
class Output:
    """One response. generator: the model's name. dataset: source of the instruction, or ""."""

    instruction: str
    output: str
    generator: str
    dataset: str = ""


def read_outputs(path: Path) -> list[Output]:
    """The responses in a JSON list of {instruction, output, generator, dataset}, perhaps gzipped.

    UserError at the first row that is none.
    """
    outputs = []
    for where, row in rows_of(path):
        if not row.get("generator"):
            raise UserError(f"{where}: no generator; say which model wrote these answers")
        instruction, output = (text_of(row, key, where) for key in ("instruction", "output"))
        names = (clean(str(row.get(key) or "")) for key in ("generator", "dataset"))
        outputs.append(Output(instruction, output, *names))
    return outputs


def pair_up(outputs: Sequence[Output], references: Sequence[Output]) -> list[Pair]:
    """Put each response beside that of the reference.

    Args:
        outputs: The model's.
        references: The reference model's, on the same instructions.

    Returns:
        One pair per instruction, in the order of the references.

    Raises:
        UserError: If an instruction comes twice, has no response, or is unknown to the references.
    """
    if not outputs or not references:
        raise UserError("no answers to compare: the outputs or the references are empty")
    theirs = {r.instruction: r for r in require_unique(references, "the references")}
    ours = {o.instruction: o for o in require_unique(outputs, "the outputs")}
    for what, rows in (("outputs", outputs), ("references", references)):
        names = {row.generator for row in rows}
        if len(names) > 1:
            raise UserError(f"the {what} are of several models: {', '.join(sorted(names))}")
    if unknown := [i for i in ours if i not in theirs]:
        raise UserError(
            f"{len(unknown)} outputs answer instructions that the references do not have, the "
            f"first {shown(unknown[0])}; give the references of the same set, and the instructions "
            "exactly as they are there"
        )
    if missing := [i for i in theirs if i not in ours]:
        raise UserError(
            f"{len(missing)} of {len(theirs)} instructions have no output, the first "
            f"{shown(missing[0])}; answer them all"
        )
    return [
        Pair(r.instruction, r.output, o.output, r.generator, o.generator, r.dataset or o.dataset)
        for r, o in ((r, ours[r.instruction]) for r in references)
    ]


def require_unique(rows: Sequence[Any], what: str) -> Sequence[Any]:
    """`rows`, if no two have the same instruction; UserError otherwise."""
    instruction, count = Counter(row.instruction for row in rows).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{what} have {shown(instruction)} {count} times; an instruction is judged once: "
            "keep one"
        )
    return rows


# -- files ------------------------------------------------------------------------------------


def rows_of(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(place, row) of each object in a JSON list, gzipped if its name ends with .gz.

    UserError if it cannot be read as one.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a JSON list of objects, one per instruction")
    if not rows:
        raise UserError(f"{path}: the list is empty")
    return ((f"{path}, row {i}", row) for i, row in enumerate(rows))


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """The string under `key`; UserError if there is none: nothing is not an empty answer."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} must be a string, not {type(value).__name__}")
    return clean(value)


def shown(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "...")
