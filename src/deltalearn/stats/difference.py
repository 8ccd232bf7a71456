"""One score, and the difference of two: means with standard errors (Miller, arXiv 2411.00640)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from deltalearn.stats.sampling import Estimate, Sampling


def score(
    x: np.ndarray,
    strata: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
) -> Estimate:
    """The mean of (n,) scores with its standard error; macro over `strata` if they are given."""
    x = np.asarray(x, dtype=float)
    return Sampling(x.shape[-1], strata=strata, clusters=clusters).estimate(x)


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, over items: what pairing lives on. None where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.pearsonr(a, b).statistic)
