"""What is left of a judged model: a row per instruction, and a summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.length_control import (
    FULL,
    MINIMAL,
    ScoredPairs,
    length_controlled,
    pseudo_scores,
)
from deltalearn.evaluate.alpaca.length_data import LengthControlData
from deltalearn.evaluate.entries import ItemRow
from deltalearn.judge.verdicts import Annotation, one_judge
from deltalearn.util.files import digest

FULL_N = 805  # instructions of AlpacaEval
NOT_THE_BOARD = (
    "the minimal length-controlled rate is not the published one (of three models with their "
    "published verdicts it is .4 points below to .8 above it, of one made to game the judge 27 "
    "above): it cannot stand beside the leaderboard; docs/evaluation.md names the side files of "
    "the full one"
)


@dataclass(frozen=True)
class WinRate:
    """Counts over the n scored instructions.

    Attributes:
        win_rate: Mean preference for the model, in [0, 1] (alpaca_eval's leaderboard: times 100).
        standard_error: s / sqrt(n), ddof 1; NaN if n is 1.
        wins: Preferences above a half; so losses, below, and ties, exactly there.
        unscored: Replies that could not be read, left out of everything here.
        mean_length: Characters of the model's responses.
    """

    win_rate: float
    standard_error: float
    wins: int
    losses: int
    ties: int
    n: int
    unscored: int
    mean_length: float

    @property
    def discrete(self) -> float:
        """Share of wins, a tie counting half."""
        return (self.wins + self.ties / 2) / self.n


def win_rate(annotations: Sequence[Annotation]) -> WinRate:
    """The raw win rate of one model. UserError if no reply could be read."""
    scored = [a for a in annotations if a.scored]
    if not scored:
        fault = next((a.verdict.fault for a in annotations if a.verdict.fault), "none is given")
        raise UserError(
            f"none of {len(annotations)} comparisons has a preference; the first fault: {fault}"
        )
    score = np.array([a.score for a in scored])
    n = len(score)
    return WinRate(
        win_rate=float(score.mean()),
        standard_error=float(score.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        wins=int((score > 0.5).sum()),
        losses=int((score < 0.5).sum()),
        ties=int((score == 0.5).sum()),
        n=n,
        unscored=len(annotations) - n,
        mean_length=float(np.mean([len(a.pair.output_2) for a in scored])),
    )


def item_rows(annotations: Sequence[Annotation]) -> list[ItemRow]:
    """Rows for items/alpaca_eval.parquet, one per scored comparison.

    score: preference - 1, in [0, 1]; their mean is the raw win rate. cluster: the source of the
    instruction. output, gold: the model's and the reference's answer, of which the length control
    can be computed anew. Unread replies have no row. UserError if judges are mixed.
    """
    one_judge(annotations)
    return [
        {
            "id": digest(a.instruction)[:16],
            "stratum": "",
            "cluster": a.pair.dataset,
            "score": a.score,
            "prompt": a.instruction,
            "output": a.pair.output_2,
            "extracted": f"{a.verdict.preference:.10f}",
            "gold": a.pair.output_1,
        }
        for a in annotations
        if a.scored
    ]


def summary(
    annotations: Sequence[Annotation], sides: LengthControlData | None = None
) -> dict[str, Any]:
    """The benchmark's entry in results.json, with the details under "alpaca_eval".

    score: the length-controlled win rate in [0, 1]; `metric` says which, full where there are side
    files of just these instructions, else minimal. stderr: of the jackknife.

    Args:
        annotations: Of a whole set, in the order of the reference outputs.
        sides: The side files of the full length control.

    Raises:
        UserError: If judges are mixed, or nothing could be read.
    """
    judge = one_judge(annotations)
    raw = win_rate(annotations)
    notes = []
    if sides is not None and len(sides.difficulty) != len(annotations):
        notes.append(
            f"the side files of the {FULL!r} win rate are of {len(sides.difficulty)} instructions, "
            f"and {len(annotations)} are judged: it is {MINIMAL!r}"
        )
        sides = None
    judged = ScoredPairs.from_annotations(annotations)
    controlled = length_controlled(judged, sides)
    error = float(pseudo_scores(judged).std(ddof=1) / math.sqrt(raw.n))
    made = counts(annotations)
    return {
        "score": controlled.win_rate,
        "metric": controlled.name,
        "aggregation": "micro",
        "n": raw.n,
        "full_n": FULL_N,
        "subset": len(annotations) < FULL_N,
        "stderr": error,
        "notes": notes + _notes(raw, made, controlled.notes, controlled.name),
        "judge": judge.shown,
        "alpaca_eval": {
            "judge": asdict(judge) | {"shown": judge.shown},
            "reference": annotations[0].pair.generator_1,  # of all: `pair_up` looks
            "win_rate": asdict(raw) | {"discrete": raw.discrete},
            "length_controlled": asdict(controlled),
            "sides": dict(sides.sha256) if sides else None,
            "comparisons": made,
        },
    }


def counts(annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Count how judging went.

    faults: unread replies by kind. unasked: equal answers. imitations: pairs with a delimiter of
    the prompt in their texts. shown_first: mean preference for the answer shown first, 0.5 without
    position bias; None if the order is not known.
    """
    faults = Counter(a.verdict.fault.split(":")[0] for a in annotations if a.verdict.fault)
    known = [
        a for a in annotations if a.scored and a.verdict.asked and a.verdict.swapped is not None
    ]
    first = [a.score if a.verdict.swapped else 1 - a.score for a in known]
    return {
        "faults": dict(faults),
        "unasked": sum(not a.verdict.asked for a in annotations),
        "imitations": sum(bool(a.verdict.marks) for a in annotations),
        "shown_first": sum(first) / len(first) if first else None,
    }


def _notes(raw: WinRate, made: dict[str, Any], control: Sequence[str], name: str) -> list[str]:
    notes = [
        f"raw win rate {100 * raw.win_rate:.2f} +- {100 * raw.standard_error:.2f}, answers of "
        f"{raw.mean_length:,.0f} characters in the mean",
        f"{name} win rate; its stderr is a jackknife of the minimal one",
        *([NOT_THE_BOARD] if name == MINIMAL else []),
        *control,
    ]
    if raw.unscored:
        told = ", ".join(f"{number} {kind}" for kind, number in made["faults"].items())
        notes.append(f"{raw.unscored} replies of the judge have no preference ({told}): left out")
    if made["imitations"]:
        notes.append(f"{made['imitations']} pairs have delimiters of the judge's prompt in them")
    return notes
