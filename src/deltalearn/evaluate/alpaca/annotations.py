"""Annotations: who judged which pair and how, read from a file or made by `annotate`.

The file layout is alpaca_eval's annotations.json: `preference` in [1, 2], above 1.5 if the model
(output_2) is better, 0 in old files for 1.5. Ours has more fields (`judge`, `fault`, ...).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.pairs import require_unique, rows_of, shown, text_of
from deltalearn.judge.verdicts import TIE, Annotation, JudgeIdentity, Pair, Verdict, clean
from deltalearn.util.files import write_text

UNSCORED = -1  # what alpaca_eval stores for a reply that it could not read


def read_annotations(path: Path) -> list[Annotation]:
    """Annotations in alpaca_eval's layout. UserError at the first row that is none."""
    found = [_annotation(row, where) for where, row in rows_of(path)]
    require_unique(found, str(path))
    return found


def write_annotations(path: Path, annotations: Iterable[Annotation]) -> None:
    """Write annotations in a layout that `read_annotations` and alpaca_eval read, atomically.

    Args:
        path: The file, which is replaced.
        annotations: One row each, in this order.
    """
    rows = []
    for annotation in annotations:
        verdict = {k: v for k, v in asdict(annotation.verdict).items() if v not in (None, ())}
        verdict["preference"] = annotation.verdict.preference
        judge = annotation.judge
        rows.append(
            asdict(annotation.pair) | verdict | {"annotator": judge.shown, "judge": asdict(judge)}
        )
    write_text(path, json.dumps(rows, indent=1) + "\n")


def match(annotations: Sequence[Annotation], pairs: Sequence[Pair]) -> list[Annotation]:
    """Find the annotations of `pairs` by instruction.

    Args:
        annotations: Of these pairs and perhaps of more, in any order.
        pairs: What must have been judged.

    Returns:
        One annotation for each pair, in their order.

    Raises:
        UserError: If one is missing, comes twice, or judged other texts than these.
    """
    by_instruction = {a.instruction: a for a in require_unique(annotations, "the annotations")}
    if missing := [p for p in pairs if p.instruction not in by_instruction]:
        raise UserError(
            f"{len(missing)} of {len(pairs)} instructions have no annotation, the first "
            f"{shown(missing[0].instruction)}; annotate them, or leave them out of the outputs too"
        )
    found = [by_instruction[pair.instruction] for pair in pairs]
    for annotation, pair in zip(found, pairs, strict=True):
        for side in ("output_1", "output_2"):
            if getattr(annotation.pair, side) != getattr(pair, side):
                whose = pair.generator_1 if side == "output_1" else pair.generator_2
                raise UserError(
                    f"the annotation of {shown(pair.instruction)} judged another answer of "
                    f"{whose}; annotate these outputs, or give the ones that were judged"
                )
    return found


def _annotation(row: Mapping[str, Any], where: str) -> Annotation:
    instruction, output_1, output_2 = (
        text_of(row, key, where) for key in ("instruction", "output_1", "output_2")
    )
    first, second = (clean(str(row.get(f"generator_{i}") or "?")) for i in (1, 2))
    dataset = clean(str(row.get("dataset") or ""))
    pair = Pair(instruction, output_1, output_2, first, second, dataset)
    preference = _preference(row.get("preference"), where)
    fault = row.get("fault") or (None if preference is not None else "no preference in the file")
    verdict = Verdict(
        preference,
        fault=fault,
        swapped=row.get("swapped"),
        asked=row.get("asked", True),
        marks=tuple(row.get("marks") or ()),
        reply=row.get("reply"),
        logprobs=tuple(row["logprobs"]) if row.get("logprobs") else None,
    )
    return Annotation(pair, _judge(row, where), verdict)


def _judge(row: Mapping[str, Any], where: str) -> JudgeIdentity:
    told = row.get("judge")
    try:
        if told is not None:
            return JudgeIdentity(**told)
    except TypeError as error:
        raise UserError(f"{where}: judge is not one of ours ({error})") from None
    name = row.get("annotator")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: no annotator; without its judge a preference means nothing")
    return JudgeIdentity(clean(name))


def _preference(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: preference must be a number, not {value!r}")
    if value == UNSCORED or math.isnan(value):
        return None
    if value == 0:
        return TIE
    if not 1 <= value <= 2:
        raise UserError(f"{where}: preference must be in [1, 2], not {value!r}")
    return float(value)
