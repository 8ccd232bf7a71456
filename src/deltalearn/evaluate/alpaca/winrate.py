"""The raw win rate: the mean preference for the model, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import Annotation


@dataclass(frozen=True)
class WinRate:
    """Counts over the n scored instructions.

    win_rate: mean preference in [0, 1] (alpaca_eval and its leaderboard: times 100).
    standard_error: s / sqrt(n), ddof 1; NaN if n is 1. wins, losses, ties: preference above, below
    and exactly at a half. discrete: (wins + ties / 2) / n. unscored: replies that could not be
    read, left out of everything here. mean_length: characters of the model's answers.
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
    """The win rate of one model. UserError if no reply could be read."""
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
