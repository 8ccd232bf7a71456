"""How long a run is, in which order it sees its pairs, and the learning rate at each step."""

from __future__ import annotations

import math

import numpy as np


def total_steps(pairs: int, batch_size: int, steps: int | None, epochs: float | None) -> int:
    """Optimiser steps of a run: `steps` if given, else ceil(epochs x floor(pairs / batch_size)).

    The last incomplete batch of an epoch is left out, as in the paper's code. Zero if there are
    fewer pairs than one batch.
    """
    per_epoch = pairs // batch_size
    if per_epoch == 0:
        return 0
    return steps if steps is not None else math.ceil((epochs or 1.0) * per_epoch)


def batch_at(step: int, pairs: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the pairs of one step (from 0): a pure function, so resuming needs no state.

    Every epoch is a fresh permutation of all pairs, reproducible from (seed, epoch).
    """
    per_epoch = pairs // batch_size
    epoch, within = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    return order[within * batch_size : (within + 1) * batch_size].tolist()


def learning_rate(
    step: int, total: int, peak: float, warmup_ratio: float, min_ratio: float
) -> float:
    """Linear warm-up over ceil(warmup_ratio x total) steps, then a cosine down to a floor.

    The first step already moves (peak / warmup steps) and the floor min_ratio x peak is reached
    at step `total`, so that no step is spent at a rate of zero.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
