"""Many tests at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values (1979), in the order given.

    Sorted ascending, the i-th of m becomes max over j <= i of min(1, (m - j + 1) p_(j)); a
    difference is shown at level alpha if its adjusted p is below alpha, and the chance that any is
    shown which is none stays below alpha, however the tests hang together.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted
