"""Finite-sample training, many independent trials at once, in float64.

Every loss is the same loop with another coefficient: a step adds rate x mean(coefficient x input).
Nothing of the closed form is used, so that each can be checked against the other. Under normal
inputs the directions may lie in the first coordinates (rotation invariance); other inputs get
directions placed at random, anew for each trial. A pair on which the teachers agree teaches nothing
(coefficient zero), so under normal inputs its other coordinates are never drawn.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import numpy as np
from scipy.signal import lfilter
from scipy.sparse import csr_array
from scipy.special import expit

from deltalearn.errors import UserError
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.options import Inputs, Loss

LOSSES, INPUTS = get_args(Loss), get_args(Inputs)
CHUNK_BYTES = 4 * 2**20  # of inputs drawn at once by one thread: about what its cache holds
# What a setting has an effect on: the field, and its values.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "beta": ("loss", ("dpo",)),
    "freedom": ("inputs", ("elliptical", "heavy")),
    "correlation": ("inputs", ("correlated",)),
}
PARTS = 4  # at least so many chunks, for as many threads


@dataclass(frozen=True)
class Plan:
    """Sizes, loss, inputs and seed of one simulation.

    Attributes:
        dimension: Of the inputs.
        trials: Number of independent students.
        steps: Gradient steps of each.
        rate: Learning rate.
        batch: Pairs a step. Full-batch training is one large batch on which the preference
            gradient, which does not depend on theta, gives the same as many small ones.
        temperature: Of the teachers' labels; 0 for hard ones.
        loss: One of LOSSES.
        beta: Of DPO.
        inputs: "normal"; "elliptical": multivariate t with `freedom` degrees of freedom; "heavy":
            independent t coordinates; "correlated": normal with a correlation of `correlation` to
            the power |i - j|. All have unit variances.
        random_errors: Draw the error directions anew in every two trials, mirror images of one
            another, instead of taking the geometry's.
        records: Numbers of steps after which to measure; default 0 and `steps`.
        seed: Decides the result alone.
    """

    dimension: int
    trials: int
    steps: int
    rate: float
    batch: int = 1
    loss: str = "preference"
    beta: float = 5.0
    temperature: float = 0.0
    inputs: str = "normal"
    freedom: float = 5.0
    correlation: float = 0.5
    random_errors: bool = False
    records: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dimension", "trials", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("rate", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        if self.loss not in LOSSES:
            raise UserError(f"no loss {self.loss!r}; there are {', '.join(LOSSES)}")
        if self.inputs not in INPUTS:
            raise UserError(f"no inputs {self.inputs!r}; there are {', '.join(INPUTS)}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 or more, finite")
        if "freedom" in self.used and not 2 < self.freedom < math.inf:
            raise UserError(f"freedom is {self.freedom}; unit variance needs more than 2, finite")
        if not -1 < self.correlation < 1:
            raise UserError(f"correlation is {self.correlation}; it must lie in (-1, 1)")
        if self.random_errors and self.dimension < 4:
            raise UserError("random error directions need at least 4 dimensions")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")

    @property
    def used(self) -> list[str]:
        """Those settings of NEEDS that this loss and these inputs have."""
        return [name for name, (key, values) in NEEDS.items() if getattr(self, key) in values]


@dataclass(frozen=True)
class Estimate:
    """Means over trials, with standard errors.

    Attributes:
        mean: (values,).
        error: (values,); NaN for a single trial.
    """

    mean: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, *, mirrored: bool = False) -> Estimate:
        """Estimate from values of shape (trials, records); `mirrored`: neighbours are one draw."""
        mean = values.mean(axis=0)
        if mirrored:
            pairs = len(values) // 2
            values = (values[: 2 * pairs : 2] + values[1 : 2 * pairs : 2]) / 2
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(len(mean), np.nan)
        return cls(mean, spread / np.sqrt(len(values)))


@dataclass(frozen=True)
class Result:
    """Measurements of all trials after each of `steps`; per-trial values are (trials, records)."""

    steps: np.ndarray
    cosines: np.ndarray
    accuracies: np.ndarray
    overlaps: np.ndarray  # theta* . theta
    norms_squared: np.ndarray  # |theta|^2
    mirrored: bool = False  # whether neighbouring trials are mirror images

    @property
    def cosine(self) -> Estimate:
        """Mean cosine to the truth."""
        return Estimate.of(self.cosines, mirrored=self.mirrored)

    @property
    def accuracy(self) -> Estimate:
        """Mean share of inputs labelled as the truth labels them."""
        return Estimate.of(self.accuracies, mirrored=self.mirrored)


def simulate(geometry: Geometry, plan: Plan) -> Result:
    """Train `plan.trials` independent students and measure them.

    Memory is bounded whatever the numbers: on each core a few times CHUNK_BYTES, or a few vectors
    of `dimension` numbers if that is more. The result depends on the seed alone, not on the number
    of cores.

    Args:
        geometry: The directions of truth, student and teachers.
        plan: Sizes, loss, inputs and seed.

    Returns:
        Measurements at `plan.records`.
    """
    if not plan.random_errors:
        geometry.vectors(plan.dimension)  # raises if the dimension is too small
    records = np.array(sorted(set(plan.records or (0, plan.steps))))
    if records[0] < 0 or records[-1] > plan.steps:
        raise UserError(f"records must lie within 0 and {plan.steps} steps")
    size = max(1, min(-(-plan.trials // PARTS), CHUNK_BYTES // (8 * plan.dimension)))
    size += size % 2 if plan.random_errors else 0  # mirror images are drawn together
    starts = range(0, plan.trials, size)
    seeds = np.random.SeedSequence(plan.seed).spawn(len(starts))
    jobs = [
        (min(size, plan.trials - start), np.random.default_rng(seed))
        for start, seed in zip(starts, seeds, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda job: _trials(geometry, plan, records, *job), jobs))
    cosines, accuracies, overlaps, norms = (
        np.concatenate([part[i] for part in parts]) for i in range(4)
    )
    return Result(records, cosines, accuracies, overlaps, norms, mirrored=plan.random_errors)


def _trials(
    geometry: Geometry, plan: Plan, records: np.ndarray, trials: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """One chunk of trials; returns (cosines, accuracies, overlaps, norms squared)."""
    truth, student, chosen, rejected = _directions(geometry, plan, trials, rng)
    theta = np.zeros((trials, plan.dimension))
    theta[:, : student.shape[-1]] = geometry.norm * student
    start = theta.copy() if plan.loss == "dpo" else None
    at_once = max(1, CHUNK_BYTES // (8 * plan.dimension * trials))  # pairs, to bound memory
    measured: list[tuple[np.ndarray, ...]] = []
    for step in range(plan.steps + 1):
        if step in records:
            measured.append(_measure(theta, truth, plan, rng))
        if step == plan.steps:
            break
        change = np.zeros_like(theta)
        for at in range(0, plan.batch, at_once):
            rows = min(at_once, plan.batch - at)
            change += _summed_change(plan, rng, rows, theta, start, chosen, rejected)
        theta += change * (plan.rate / plan.batch)
    return tuple(np.stack(columns, axis=1) for columns in zip(*measured, strict=True))


def _summed_change(
    plan: Plan,
    rng: np.random.Generator,
    rows: int,
    theta: np.ndarray,
    start: np.ndarray | None,
    chosen: np.ndarray,
    rejected: np.ndarray,
) -> np.ndarray:
    """Sum over `rows` fresh pairs a trial of coefficient x input, shape (trials, dimension).

    The coefficient is minus the derivative of the pair's loss by its logit theta . x.
    """
    lazy = plan.inputs == "normal"  # the labels look at the leading coordinates only
    drawn = chosen.shape[-1] if lazy else plan.dimension
    x = draw_inputs(rng, plan, (len(theta), rows, drawn))
    y_c, y_r = (_labels(rng, x, u, plan.temperature) for u in (chosen, rejected))
    teaches = np.ones(y_c.shape, bool) if plan.loss == "sft" else y_c != y_r
    counts = teaches.sum(1)
    x, y = x[teaches], y_c[teaches]  # all trials' pairs, one after the other
    if lazy:
        leading, x = x, rng.standard_normal((len(x), plan.dimension))
        x[:, :drawn] = leading
    if plan.loss == "preference":
        coefficient = y  # (y_c - y_r) / 2
    else:
        beta = plan.beta if plan.loss == "dpo" else 1.0
        weight = theta - start if plan.loss == "dpo" else theta
        logit = np.einsum("nd,nd->n", x, np.repeat(weight, counts, axis=0))
        coefficient = beta * y * expit(-beta * y * logit)
    ends = np.concatenate([[0], np.cumsum(counts)])
    by_trial = csr_array((coefficient, np.arange(len(x)), ends), shape=(len(theta), len(x)))
    return by_trial @ x


def draw_inputs(rng: np.random.Generator, plan: Plan, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw inputs, every coordinate with mean 0 and variance 1.

    Args:
        rng: Source of randomness.
        plan: Gives the distribution.
        shape: (trials, rows, dimension).

    Returns:
        Inputs of that shape, float64.
    """
    if plan.inputs == "heavy":
        return rng.standard_t(plan.freedom, shape) * np.sqrt((plan.freedom - 2) / plan.freedom)
    x = rng.standard_normal(shape)
    if plan.inputs == "elliptical":
        scale = (plan.freedom - 2) / rng.chisquare(plan.freedom, shape[:2])
        x *= np.sqrt(scale)[..., None]
    elif plan.inputs == "correlated":
        x[..., 1:] *= np.sqrt(1 - plan.correlation**2)
        x = lfilter([1.0], [1.0, -plan.correlation], x)
    return x


def _along(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """u . x for directions u of shape (trials or 1, c) that fill the first c coordinates."""
    return np.einsum("tbc,tc->tb", x[..., : u.shape[-1]], u)


def _labels(rng: np.random.Generator, x: np.ndarray, u: np.ndarray, temperature: float):
    logits = _along(x, u)
    if temperature == 0:
        return np.where(logits > 0, 1.0, -1.0)
    return np.where(rng.random(logits.shape) < expit(logits / temperature), 1.0, -1.0)


def _measure(
    theta: np.ndarray, truth: np.ndarray, plan: Plan, rng: np.random.Generator, test: int = 200
) -> tuple[np.ndarray, ...]:
    """Cosine, accuracy, overlap and squared norm of each trial.

    Accuracy is exact given the cosine for inputs that look alike in all directions; otherwise it
    is counted on `test` fresh inputs a trial.
    """
    overlap = _along(theta[:, None, :], truth)[:, 0]
    squared = np.einsum("td,td->t", theta, theta)
    cosine = overlap / np.sqrt(squared)
    if plan.inputs in ("normal", "elliptical"):
        return cosine, 1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi, overlap, squared
    right = np.zeros(len(theta))
    for _ in range(test):
        x = draw_inputs(rng, plan, (len(theta), 1, plan.dimension))
        says = np.einsum("tbd,td->tb", x, theta)[:, 0] > 0
        right += says == (_along(x, truth)[:, 0] > 0)
    return cosine, right / test, overlap, squared


def _directions(
    geometry: Geometry, plan: Plan, trials: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """(theta*, u_0, u_c, u_r), each (trials or 1, c): the first c coordinates, the rest zero."""
    if plan.random_errors:
        frames = _random_error_frames(geometry, plan.dimension, trials, rng)  # (trials, 4, 4)
    else:
        frames = geometry.vectors(max(4, plan.dimension))[None, :, :4]
    if plan.inputs in ("normal", "elliptical"):
        width = min(4, plan.dimension)
        return [frames[:, i, :width] for i in range(4)]
    raw = rng.standard_normal((trials, plan.dimension, min(4, plan.dimension)))
    basis, triangle = np.linalg.qr(raw)
    basis *= np.sign(np.diagonal(triangle, axis1=1, axis2=2))[:, None, :]  # uniform, signs too
    width = basis.shape[-1]
    return [np.einsum("tdc,tc->td", basis, frames[:, i, :width]) for i in range(4)]


def _random_error_frames(
    geometry: Geometry, dimension: int, trials: int, rng: np.random.Generator
) -> np.ndarray:
    """Coordinates (trials, 4, 4) of theta* and of directions with uniformly random errors.

    Three uniform directions in dimension - 1, by the Bartlett decomposition of their Gram matrix:
    exact, without drawing the dimension - 1 coordinates. Every second trial has the directions of
    the one before it with the student's error turned round, which is as probable: by how much the
    student's error lies along the teachers' is then zero in the mean of every two, not in that of
    all that there will ever be.
    """
    lower = np.zeros((trials, 3, 3))
    for i in range(3):
        lower[:, i, i] = np.sqrt(rng.chisquare(dimension - 1 - i, trials))
        lower[:, i, :i] = rng.standard_normal((trials, i))
    errors = lower / np.linalg.norm(lower, axis=2, keepdims=True)
    second = errors[1::2]
    second[:] = errors[: 2 * len(second) : 2]
    second[:, 0] *= -1
    cosines = geometry.cosines
    frames = np.zeros((trials, 4, 4))
    frames[:, 0, 0] = 1
    frames[:, 1:, 0] = cosines
    frames[:, 1:, 1:] = np.sqrt(1 - cosines**2)[:, None] * errors
    return frames
