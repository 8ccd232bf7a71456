"""Two benchmarks on the same problems, as HumanEval and HumanEval+, are not two samples.

Their mean is taken as one score per problem, so that what a problem does to both is in its error.
Problems may be in one of them only (a limit, a split): of N problems in all, one that is among the
n_k of benchmark k contributes N / n_k * (score - mean_k) on top of the mean, to first order what it
does to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def joint(parts: Sequence[tuple[Sequence[str], np.ndarray]]) -> tuple[list[str], np.ndarray]:
    """[(ids, (runs, n_k) scores)] -> all ids in order, (runs, N) scores of the plain mean.

    The mean over N is the mean of the parts' means. With equal ids a score is just the mean of the
    parts' scores.
    """
    names = list(dict.fromkeys(name for ids, _ in parts for name in ids))
    place = {name: i for i, name in enumerate(names)}
    scores = np.zeros((parts[0][1].shape[0], len(names)))
    for ids, own in parts:
        mean = own.mean(axis=1, keepdims=True)
        at = [place[name] for name in ids]
        scores[:, at] += (own - mean) * (len(names) / own.shape[1] / len(parts))
        scores += mean / len(parts)
    return names, scores
