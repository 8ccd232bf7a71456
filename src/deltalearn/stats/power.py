"""What a comparison can see: the minimum detectable effect, and the items that one needs.

(z_{1 - alpha/2} + z_power) sd / sqrt(n), 2.80 standard errors at 5% two-sided and 80% power: a true
difference of that size is shown four times in five. sd is that of the per-item differences.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

ALPHA, POWER = 0.05, 0.80


def multiple(alpha: float = ALPHA, power: float = POWER, df: float = math.inf) -> float:
    """Minimum detectable effect in standard errors: 2.80 by default.

    With few degrees of freedom the two quantiles are those of t.
    """
    quantiles = stats.t.ppf([1 - alpha / 2, power], df)
    return float(quantiles.sum())


def detectable(
    sd: float | np.ndarray, n: float | np.ndarray, alpha: float = ALPHA, power: float = POWER
) -> float | np.ndarray:
    """The minimum detectable effect with n items whose differences have standard deviation sd."""
    return multiple(alpha, power) * sd / np.sqrt(n)


def needed(sd: float, effect: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """The least number of items with which `effect` is detectable."""
    return math.ceil((multiple(alpha, power) * sd / effect) ** 2 - 1e-9)


def sd_of(discordance: float, effect: float = 0.0) -> float:
    """sd of the differences of 0/1 scores: sqrt(q - effect^2), q the share of items that differ.

    The default, no effect, is the largest it can be for a q, and what to plan with.
    """
    if not 0 <= effect**2 <= discordance <= 1:
        raise ValueError(f"discordance {discordance} with effect {effect}: no such 0/1 scores")
    return math.sqrt(discordance - effect**2)
