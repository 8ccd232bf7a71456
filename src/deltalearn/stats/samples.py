"""Several samples of one problem: the problem stays the unit (arXiv 2411.00640, section 3.1)."""

from __future__ import annotations

import numpy as np

from deltalearn.evaluate.graders.code import pass_at_k as of_one


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Numbers of correct samples, of any shape -> the unbiased pass@k of each problem.

    The mean over problems and its s / sqrt(problems) are the score and its standard error: the
    noise of drawing samples is in the spread over problems already. ValueError as `graders.code`.
    """
    correct = np.asarray(correct)
    if np.any((correct < 0) | (correct > samples)):
        raise ValueError(f"right samples must be 0 to {samples}")
    return np.array([of_one(samples, c, k) for c in range(samples + 1)])[correct]
