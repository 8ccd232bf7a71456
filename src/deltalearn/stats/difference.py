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
    """Compute the mean of scores with its standard error (Miller, arXiv 2411.00640).

    Args:
        x: (n,) scores.
        strata: Stratum of each score; the mean is then the mean of the strata's means.
        clusters: Cluster of each score, drawn together; default each by itself.

    Returns:
        The mean with its standard error and degrees of freedom.
    """
    x = np.asarray(x, dtype=float)
    return Sampling(x.shape[-1], strata=strata, clusters=clusters).estimate(x)


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, over items: what pairing lives on. None where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.pearsonr(a, b).statistic)
