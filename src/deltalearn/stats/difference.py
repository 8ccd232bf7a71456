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


def paired(
    a: np.ndarray,
    b: np.ndarray,
    strata: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
) -> Estimate:
    """mean(a - b) of two models on the same items, in the same order; otherwise as `score`."""
    return score(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), strata, clusters)


def unpaired(a: np.ndarray, b: np.ndarray) -> Estimate:
    """mean(a) - mean(b) as if the items were different ones, with Welch's degrees of freedom.

    Never the right error for the same items; shown for what pairing gains.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (a, b)]
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / free for variance, free in parts)
    df = total**2 / below if below else sum(free for _, free in parts)
    return Estimate(float(a.mean() - b.mean()), float(np.sqrt(total)), float(df))


def clustered_se(x: np.ndarray, clusters: Sequence[object], *, correction: bool = True) -> float:
    """The standard error of the mean of (n,) scores in clusters.

    sqrt(sum_c (sum_{i in c} (x_i - mean x))^2) / n, and with `correction` times sqrt(G / (G - 1)).
    """
    x = np.asarray(x, dtype=float)
    sampling = Sampling(len(x), clusters=clusters)
    return float(np.sqrt(sampling.variance(x, correction=correction)[0]))


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's, over items: what pairing lives on. None where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.pearsonr(a, b).statistic)
