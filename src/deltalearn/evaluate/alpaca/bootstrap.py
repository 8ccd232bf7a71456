"""How far a win rate would move with other instructions: a paired bootstrap that refits.

Instructions are drawn with replacement, the same for all models, so that differences are paired.
For each draw the length control is fitted anew, its length scale included, by maximum likelihood
(Newton, all draws of a chunk at once): the published fit would take minutes, and its penalty moves
a win rate by a tenth of a point where the standard error is above one.

alpaca_eval's own `lc_standard_error` is the standard error of the *fitted* preferences, 0 in the
minimal variant; it says nothing about how uncertain the score is and is not computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.glm import fit_newton
from deltalearn.evaluate.alpaca.length import Judged, length_controlled, predicted, regression
from deltalearn.evaluate.alpaca.length_data import Sides

CHUNK = 200  # draws at a time, to bound memory
DRAWS = 2000


@dataclass(frozen=True)
class Resampled:
    """A number and what it was in each draw. The number is that of the maximum-likelihood fit."""

    point: float
    draws: np.ndarray

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(self.point - other.point, self.draws - other.draws)

    @property
    def standard_error(self) -> float:
        """Deviation over the draws."""
        return float(self.draws.std(ddof=1))

    @property
    def interval(self) -> tuple[float, float]:
        """Percentile interval of 95%."""
        low, high = np.percentile(self.draws, [2.5, 97.5])
        return float(low), float(high)


@dataclass(frozen=True)
class BootstrapRates:
    """Of one model, both in [0, 1]."""

    win_rate: Resampled
    length_controlled: Resampled


def bootstrap(
    models: Mapping[str, Judged],
    sides: Sides | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, BootstrapRates]:
    """Resampled win rates of each model, paired: row i of all models is the same instruction.

    sides: for the full length control; the gamed rows are no sample and stay as they are.
    UserError if the models were not judged on the same instructions, or on none.
    """
    sizes = {name: len(judged.score) for name, judged in models.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"models judged on different instructions cannot be paired: {sizes}")
    positions = [j.position for j in models.values() if j.position is not None]
    if any(not np.array_equal(positions[0], p) for p in positions[1:]):
        raise UserError("models judged on different instructions cannot be paired")
    n = next(iter(sizes.values()))
    if not n:
        raise UserError("no comparison has a preference for all models; there is nothing to draw")
    starts = {
        name: fit_newton(*regression(judged, np.ones(n), sides)) for name, judged in models.items()
    }
    rng = np.random.default_rng(seed)
    raw = {name: np.empty(draws) for name in models}
    controlled = {name: np.empty(draws) for name in models}
    for at in range(0, draws, CHUNK):
        part = slice(at, min(at + CHUNK, draws))
        counts = rng.multinomial(n, np.full(n, 1 / n), size=part.stop - at).astype(np.float64)
        for name, judged in models.items():
            raw[name][part] = counts @ judged.score / n
            beta = fit_newton(*regression(judged, counts, sides), starts[name])
            controlled[name][part] = predicted(beta, judged, counts, sides)
    result = {}
    for name, judged in models.items():
        point = length_controlled(judged, sides, "maximum likelihood").win_rate
        result[name] = BootstrapRates(
            Resampled(float(judged.score.mean()), raw[name]),
            Resampled(point, controlled[name]),
        )
    return result
