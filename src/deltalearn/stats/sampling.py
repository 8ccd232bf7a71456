"""How items were drawn, and what follows for the mean of their scores and its standard error.

A benchmark is one stratum (micro: the mean over all items) or several with equal weight (macro: the
mean of stratum means). Within a stratum items are drawn alone or in clusters (questions about one
passage). The variance of a stratum's mean with n items in G clusters is

    G / (G - 1) * sum_c (sum of x_i - mean over the items i of cluster c)^2 / n^2

which is s^2 / n where every item is its own cluster; stratum variances add with squared weights.
With few clusters of very uneven size its t interval is too narrow (five clusters, two of which hold
nearly all items: 80% instead of 95%; AlpacaEval's five sources: 94%).
All of it works along the last axis, so that a simulation can pass thousands of data sets at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and the degrees of freedom of that; floats, or arrays."""

    value: float | np.ndarray
    se: float | np.ndarray
    df: float | np.ndarray

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """value -+ t * se, t with `df` degrees of freedom."""
        reach = stats.t.ppf(0.5 + level / 2, self.df) * self.se
        return self.value - reach, self.value + reach

    def p_value(self) -> float | np.ndarray:
        """Two-sided p of "the truth is zero"; 1 for a difference of exactly zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(np.divide(self.value, self.se))
        return np.where(np.equal(self.value, 0), 1.0, 2 * stats.t.sf(t, self.df))[()]


class Sampling:
    """Strata with weights, and clusters within them, of n items.

    weights: (K,), one of each stratum in the order in which strata first occur; default 1 / K.
    A cluster lies in one stratum: the same cluster label in two strata stands for two clusters.
    """

    def __init__(
        self,
        n: int,
        *,
        strata: Sequence[object] | None = None,
        clusters: Sequence[object] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if n < 1:
            raise ValueError("no items")
        self.strata: list[object] = [""]
        stratum = np.zeros(n, int)
        if strata is not None:
            stratum, self.strata = _codes(strata, n)
        unit = _codes(clusters, n)[0] if clusters is not None else np.arange(n)
        self.n = n
        self.clustered = clusters is not None
        self.weights = np.full(len(self.strata), 1 / len(self.strata))
        if weights is not None:
            self.weights = np.asarray(weights, dtype=float)
        if self.weights.shape != (len(self.strata),):
            raise ValueError(f"{len(self.strata)} strata, weights {self.weights.shape}")
        # Items in order of stratum and cluster, so that sums are sums of runs.
        self._order = np.lexsort((unit, stratum))
        own, of = unit[self._order], stratum[self._order]
        new = np.ones(n, bool)
        new[1:] = (own[1:] != own[:-1]) | (of[1:] != of[:-1])
        self._unit_starts = np.flatnonzero(new)
        self._stratum_of_unit = of[self._unit_starts]
        self._stratum_starts = np.unique(self._stratum_of_unit, return_index=True)[1]
        self.unit_sizes = np.diff(self._unit_starts, append=n)  # (units,) items of each cluster
        self.units = np.diff(self._stratum_starts, append=len(self._unit_starts))  # (K,) G
        self.sizes = np.add.reduceat(self.unit_sizes, self._stratum_starts)  # (K,) n

    @classmethod
    def together(cls, parts: Sequence[tuple[Sampling, float]]) -> Sampling:
        """The mean of several means with the given weights, of items that lie one after another."""
        strata: list[tuple[int, int]] = []
        clusters: list[tuple[int, int]] = []
        weights: list[float] = []
        for i, (part, weight) in enumerate(parts):
            stratum, unit = np.empty(part.n, int), np.empty(part.n, int)
            stratum[part._order] = np.repeat(part._stratum_of_unit, part.unit_sizes)
            unit[part._order] = np.repeat(np.arange(len(part.unit_sizes)), part.unit_sizes)
            strata += [(i, s) for s in stratum]
            clusters += [(i, u) for u in unit]
            first = dict.fromkeys(stratum.tolist())  # strata in the order in which they occur
            weights += [weight * part.weights[s] for s in first]
        return cls(len(strata), strata=strata, clusters=clusters, weights=weights)

    def unit_sums(self, x: np.ndarray) -> np.ndarray:
        """(..., n) -> (..., units): the sum over each cluster, clusters in order of strata."""
        if x.shape[-1] != self.n:
            raise ValueError(f"{x.shape[-1]} values for {self.n} items")
        return np.add.reduceat(x[..., self._order], self._unit_starts, axis=-1)

    def stratum_means(self, x: np.ndarray) -> np.ndarray:
        """(..., n) -> (..., K)."""
        return np.add.reduceat(self.unit_sums(x), self._stratum_starts, axis=-1) / self.sizes

    def mean(self, x: np.ndarray) -> np.ndarray:
        """(..., n) -> (...): the weighted mean of stratum means."""
        return self.stratum_means(x) @ self.weights

    def influence(self, x: np.ndarray) -> np.ndarray:
        """(..., n) -> (..., units): how far each cluster moves `mean`; sums to 0 per stratum."""
        means = self.stratum_means(x)[..., self._stratum_of_unit]
        share = (self.weights / self.sizes)[self._stratum_of_unit]
        return (self.unit_sums(x) - self.unit_sizes * means) * share

    def variance(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., n) -> the variance of `mean` and its degrees of freedom (Satterthwaite), (...).

        Strata of one unit are collapsed: their spread around each other stands for the spread
        within them, which is too much rather than too little (Cochran, Sampling Techniques,
        5A.12). NaN where nothing can be known.
        """
        squares = np.add.reduceat(self.influence(x) ** 2, self._stratum_starts, axis=-1)
        many = self.units > 1
        free = np.where(many, self.units - 1, 1)
        parts = np.where(many, squares * (self.units / free), 0.0)
        if many.all():
            return _add_up(parts, free)
        single = ~many
        if (alone := int(single.sum())) > 1:
            x_k = (self.stratum_means(x) * self.weights)[..., single]
            spread = x_k.var(axis=-1, ddof=1, keepdims=True) * alone
            parts = np.concatenate([parts[..., many], spread], axis=-1)
            return _add_up(parts, np.append(free[many], alone - 1))
        if not many.any():
            unknown = np.full(x.shape[:-1], np.nan)
            return unknown, unknown
        # One such stratum: what the others show within them, by their degrees of freedom.
        per_unit = parts[..., many] / self.weights[many] ** 2 * self.units[many]
        pooled = (per_unit * free[many]).sum(-1, keepdims=True) / free[many].sum()
        parts = np.concatenate([parts[..., many], pooled * self.weights[single] ** 2], axis=-1)
        return _add_up(parts, np.append(free[many], free[many].sum()))

    def estimate(self, x: np.ndarray) -> Estimate:
        """Mean, standard error and degrees of freedom of (..., n) scores or differences."""
        variance, df = self.variance(x)
        return Estimate(self.mean(x)[()], np.sqrt(variance)[()], df[()])


def _add_up(parts: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of independent variances, and Satterthwaite's degrees of freedom of it."""
    total = parts.sum(axis=-1)
    below = (parts**2 / free).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(below > 0, total**2 / below, free.sum())
    return total, df


def _codes(labels: Sequence[object], n: int) -> tuple[np.ndarray, list[object]]:
    """Labels as numbers in the order in which they first occur, and the labels."""
    if len(labels) != n:
        raise ValueError(f"{len(labels)} labels for {n} items")
    number: dict[object, int] = {}
    codes = np.fromiter((number.setdefault(label, len(number)) for label in labels), int, n)
    return codes, list(number)
