"""What a comparison can see: the minimum detectable effect, and the items that one needs.

(z_{1 - alpha/2} + z_power) sd / sqrt(n), 2.80 standard errors at 5% two-sided and 80% power: a true
difference of that size is shown four times in five. sd is that of the per-item differences.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

ALPHA, POWER = 0.05, 0.80


def multiple(df: float = math.inf) -> float:
    """Minimum detectable effect in standard errors: 2.80, more with few degrees of freedom (t)."""
    return float(stats.t.ppf([1 - ALPHA / 2, POWER], df).sum())


def detectable(sd: float | np.ndarray, n: float | np.ndarray) -> float | np.ndarray:
    """The minimum detectable effect with n items whose differences have standard deviation sd."""
    return multiple() * sd / np.sqrt(n)


def needed(sd: float, effect: float) -> int:
    """The least number of items with which `effect` is detectable."""
    return math.ceil((multiple() * sd / effect) ** 2 - 1e-9)
