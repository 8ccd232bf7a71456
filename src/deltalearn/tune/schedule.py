"""Length of a run, order of its pairs, and the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def total_steps(pairs: int, batch_size: int, steps: int | None, epochs: float | None) -> int:
    """Count the optimiser steps of a run.

    The last incomplete batch of an epoch is left out, as in the paper's code.

    Returns:
        `steps`, or ceil(epochs x floor(pairs / batch_size)); zero if the pairs fill no batch.
    """
    per_epoch = pairs // batch_size
    if per_epoch == 0:
        return 0
    return steps if steps is not None else math.ceil((epochs or 1.0) * per_epoch)


def batch_at(step: int, pairs: int, batch_size: int, seed: int) -> list[int]:
    """Find the pairs of one step, counted from 0: a pure function, so resuming needs no state.

    Every epoch is a fresh permutation of all pairs, reproducible from (seed, epoch).
    """
    per_epoch = pairs // batch_size
    epoch, within = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(pairs)
    return order[within * batch_size : (within + 1) * batch_size].tolist()


# What is left of the way from the peak to the floor, by the share of the decay that is behind.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def learning_rate(
    step: int,
    total: int,
    peak: float,
    warmup_ratio: float,
    min_ratio: float,
    scheduler: str = "cosine",
) -> float:
    """Compute the learning rate of a step: linear warm-up, then the scheduler.

    Warm-up takes ceil(warmup_ratio x total) steps. The first step already moves (peak / warmup
    steps) and the floor is reached at step `total`, so that no step is spent at a rate of zero.

    transformers has the same curves (cosine_with_min_lr, polynomial of power 1 with lr_end,
    constant_with_warmup), but its warm-up starts at zero: one step later than this one.

    Args:
        step: Number of the step, from 0.
        total: Steps of the run.
        peak: Rate after warm-up.
        warmup_ratio: Share of the steps that warm up.
        min_ratio: Share of the peak to which the rate falls.
        scheduler: "cosine", "linear" or "constant", which stays at the peak whatever min_ratio.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (min_ratio + (1 - min_ratio) * SCHEDULES[scheduler](progress))
