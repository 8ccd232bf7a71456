"""Two models on 0/1 scores: all the evidence lies in the items where they differ.

b items that only A answers, c that only B answers, of n. The test conditions on b + c (McNemar
1947, exact); the interval is built on the score interval of the difference (Tango, Statistics in
Medicine 17, 1998), which has a width even where no item differs: no item of 100 is no proof that
none of 10,000 does.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats


def discordant(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """(items that only a has right, items that only b has right) of boolean or 0/1 scores."""
    a, b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    return int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))


def p_value(b: int, c: int) -> float:
    """Exact two-sided p: min(1, 2 P(Bin(b + c, 1/2) <= min(b, c))); 1 where no item differs."""
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def interval(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """An interval of the difference (b - c) / n that agrees with the exact test about zero.

    The score interval, widened where the exact test of b against c is the stricter one: by the
    interval of Clopper and Pearson for b / (b + c), as (2 share - 1) (b + c) / n. It holds zero
    exactly if `p_value` is at least 1 - level, and covers at least as often as the score interval.
    """
    low, high = score_interval(b, c, n, level)
    if b + c == 0:
        return low, high
    share = stats.binomtest(b, b + c).proportion_ci(level, method="exact")
    ends = [(2 * end - 1) * (b + c) / n for end in (share.low, share.high)]
    return min(low, ends[0]), max(high, ends[1])


def score_interval(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The differences that a score test of level 1 - `level` does not reject (Tango 1998)."""
    z = float(stats.norm.ppf(0.5 + level / 2))

    def beyond(end: float, sign: int) -> float:
        return _score(b, c, n, end) - sign * z

    tiny = 1e-12
    point = (b - c) / n
    low, high = -1.0, 1.0
    if point > -1:
        low = optimize.brentq(beyond, -1 + tiny, max(point, -1 + 2 * tiny), args=(1,))
    if point < 1:
        high = optimize.brentq(beyond, min(point, 1 - 2 * tiny), 1 - tiny, args=(-1,))
    return float(low), float(high)


def _score(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic of H: difference = delta; falls from +infinity to -infinity in delta.

    q is the likeliest share of items that only B answers, given that difference.
    """
    linear = (2 * n - b + c) * delta - b - c
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
