"""The difference of two arms with its interval and p value, and the mean of several differences.

An arm is one training run or several, all scored on the same items. Which method gives the interval
follows from the scores, the same wherever it is shown:

score      0/1 scores of single runs on items drawn by themselves: McNemar's exact test, and an
           interval of the same two counts (Tango)
bootstrap  other scores of single runs: items drawn anew within their strata, percentiles
t          several runs an arm, clusters, or few items: Student's t with Satterthwaite's degrees of
           freedom, over items and training runs (`seeds`)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from deltalearn.stats import bootstrap, mcnemar, power, seeds
from deltalearn.stats.sampling import Sampling
from deltalearn.util.text_format import GAIN, LOSS, NONE

FEW = 30  # degrees of freedom below which a bootstrap is too narrow and a t is taken


@dataclass(frozen=True)
class Test:
    """A 95% interval and a p value, each with the method that gave it; None: not to be had.

    interval_by: "score" (of two counts), "bootstrap" or "t". p_by: "McNemar", "bootstrap", "t", or
    "signs" (all items differ alike).
    """

    lo: float | None
    hi: float | None
    interval_by: str | None
    p: float | None
    p_by: str | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, if there is one."""
        return None if self.lo is None or self.hi is None else (self.lo, self.hi)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A minus B, in units of the scores, with its standard error and the degrees of freedom of it.

    detectable: the minimum detectable effect, at 5% two-sided and 80% power. variance: the parts
    of se^2, of items and of the training seeds of each arm (0 where there is one run).
    """

    a: float
    b: float
    difference: float
    se: float
    df: float
    test: Test
    detectable: float
    variance: dict[str, float]

    @property
    def verdict(self) -> str:
        """GAIN or LOSS of A if the interval lies on one side of zero, else NONE."""
        ends = self.test.ends
        if ends is None or ends[0] <= 0 <= ends[1]:
            return NONE
        return GAIN if ends[0] > 0 else LOSS


@dataclass(frozen=True)
class Paired:
    """Scores of two arms on the same n items.

    Args:
        name: Decides the random stream, so that draws do not depend on what else is compared.
        a, b: (runs, n) scores, the items in the same order.
        sampling: How the items were drawn.
        draws, seed: Of the bootstrap.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    sampling: Sampling
    draws: int = bootstrap.DRAWS
    seed: int = 0

    @property
    def single(self) -> bool:
        """True if each arm is one training run."""
        return len(self.a) == len(self.b) == 1

    @property
    def item_differences(self) -> np.ndarray:
        """(n,) differences of run means."""
        return self.a.mean(axis=0) - self.b.mean(axis=0)

    @property
    def correlation(self) -> float | None:
        """Pearson's, over items: what pairing lives on. None where one side does not vary."""
        a, b = self.a.mean(axis=0), self.b.mean(axis=0)
        if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
            return None
        return float(stats.pearsonr(a, b).statistic)

    @property
    def discordant(self) -> tuple[int, int] | None:
        """(items only A has right, only B has right) of 0/1 scores of single runs, else None."""
        binary = self.single and np.isin([self.a, self.b], (0, 1)).all()
        return mcnemar.discordant(self.a[0], self.b[0]) if binary else None

    @cached_property
    def drawn(self) -> np.ndarray | None:
        """(draws,) resampled differences; None where a stratum has but one item or cluster.

        Swapped arms give the same draws, mirrored.
        """
        if not bootstrap.can_resample(self.sampling):
            return None
        d = self.item_differences
        differing = d[d != 0]
        sign = -1.0 if len(differing) and differing[0] < 0 else 1.0
        stream = [self.seed, zlib.crc32(self.name.encode())]
        return sign * bootstrap.resample(sign * d[:, None], self.sampling, self.draws, stream)[:, 0]


def compare(pair: Paired) -> Difference:
    """A minus B on one benchmark.

    Args:
        pair: The scores of both arms.

    Returns:
        The difference of the arms' scores; its test has no interval where nothing can be known of
        it, or where all items differ alike.
    """
    estimate = seeds.difference(pair.a, pair.b, pair.sampling)
    plain = len(pair.sampling.strata) == 1 and not pair.sampling.clustered
    if plain and (counts := pair.discordant) is not None:
        low, high = mcnemar.interval(*counts, pair.sampling.n)
        test = Test(low, high, "score", mcnemar.p_value(*counts), "McNemar")
    else:
        by_t = pair.sampling.clustered or not pair.single
        test = _test(estimate, None if by_t else [(1.0, pair)], len(pair.sampling.unit_sizes))
    return _difference(estimate, pair.a, pair.b, pair.sampling, test)


def compare_mean(parts: Sequence[tuple[float, Paired]]) -> Difference:
    """A minus B on the mean of several benchmarks, resampled together.

    Args:
        parts: (weight, scores) of each, with the same runs of each arm in the same order; weights
            add up to 1.

    Returns:
        The difference of the weighted means. Training runs are taken over all benchmarks: one that
        gains here what it loses there is no spread.
    """
    a, b = (np.concatenate([getattr(p, side) for _, p in parts], axis=1) for side in ("a", "b"))
    sampling = Sampling.together([(p.sampling, weight) for weight, p in parts])
    estimate = seeds.difference(a, b, sampling)
    by_t = not len(a) == len(b) == 1
    test = _test(estimate, None if by_t else parts, len(sampling.unit_sizes))
    return _difference(estimate, a, b, sampling, test)


def _test(
    estimate: seeds.SeedEstimate, parts: Sequence[tuple[float, Paired]] | None, units: int
) -> Test:
    """By the bootstrap of `parts`; by t if there are none, or where units are few."""
    if not math.isfinite(estimate.se):
        return Test(None, None, None, None, None)
    if estimate.se == 0:  # all items differ alike, most likely not at all: no spread to go by
        p = 1.0 if estimate.value == 0 else min(1.0, 2.0 ** (1 - units))
        return Test(None, None, None, p, "signs")
    drawn = [weight * pair.drawn for weight, pair in parts or () if pair.drawn is not None]
    if not parts or estimate.df < FEW or len(drawn) < len(parts):
        lo, hi = map(float, estimate.interval())
        return Test(lo, hi, "t", float(estimate.p_value()), "t")
    draws = np.sum(drawn, axis=0)
    lo, hi = bootstrap.percentile(draws)
    return Test(lo, hi, "bootstrap", bootstrap.p_value(draws), "bootstrap")


def _difference(
    estimate: seeds.SeedEstimate, a: np.ndarray, b: np.ndarray, sampling: Sampling, test: Test
) -> Difference:
    multiple = power.multiple(df=float(estimate.df)) if estimate.df > 0 else math.nan
    return Difference(
        a=float(sampling.mean(a.mean(axis=0))),
        b=float(sampling.mean(b.mean(axis=0))),
        difference=float(estimate.value),
        se=float(estimate.se),
        df=float(estimate.df),
        test=test,
        detectable=float(multiple * estimate.se),
        variance={name: float(getattr(estimate, name)) for name in ("items", "seeds_a", "seeds_b")},
    )
