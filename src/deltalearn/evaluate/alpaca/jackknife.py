"""A length-controlled win rate as a mean over items, so that it is compared like any other score.

The rate comes from a regression over all items (`alpaca.length`), so no item has a score of its
own. Its jackknife pseudo-value takes that place: n * rate - (n - 1) * rate without the item. Their
mean is the rate, and s / sqrt(n) its standard error as a bootstrap that refits gives it (Efron and
Tibshirani 1993, chapter 11), and so pairing, clusters, training seeds and averages work unchanged.
"""

from __future__ import annotations

import numpy as np

from deltalearn.evaluate.alpaca.glm import fit_newton
from deltalearn.evaluate.alpaca.length import Judged, predicted, regression

CHUNK = 200  # refits at a time, to bound memory


def pseudo_scores(judged: Judged, published: float | None = None) -> np.ndarray:
    """(n,) pseudo-values of the minimal rate, by maximum likelihood, moved to have that mean.

    published: the mean to move them to instead. For a rate fitted with a penalty, the difficulty
    of instructions or gamed baselines: the rate is kept, the error is that of the minimal one.
    """
    n = len(judged.score)
    (rate,) = _rates(judged, np.ones((1, n)))
    without = np.empty(n)
    for at in range(0, n, CHUNK):
        part = np.arange(at, min(at + CHUNK, n))
        counts = np.ones((len(part), n))
        counts[np.arange(len(part)), part] = 0
        without[part] = _rates(judged, counts)
    values = n * rate - (n - 1) * without
    return values - values.mean() + (rate if published is None else published)


def _rates(judged: Judged, counts: np.ndarray) -> np.ndarray:
    """(fits,) rates with items counted (fits, n) times."""
    return predicted(fit_newton(*regression(judged, counts, None)), judged, counts, None)
