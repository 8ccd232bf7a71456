"""Predictions of the closed form for one setting, and one simulation to hold against them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

from deltalearn.theory import closed_form as cf
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.simulate import Plan, simulate

SFT_RATE, SFT_STEPS = 0.02, 1000  # fine and long enough to find where imitation peaks


@dataclass(frozen=True)
class Theory:
    """Population results of a geometry; steps are distances s along w = u_c - u_r."""

    gap: float
    pull: float
    contrast_squared: float
    disagreement: float
    improves: bool
    initial_cosine: float
    best_step: float
    best_cosine: float
    break_even_step: float
    limit_cosine: float
    sft_improves: bool
    sft_best_time: float  # learning rate x steps
    sft_best_cosine: float
    sft_limit_cosine: float
    threshold_dimension: float
    chance_to_improve: float
    pairs_for_half: float

    @classmethod
    def of(cls, geometry: Geometry, dimension: int) -> Theory:
        """The closed form at `geometry`; the last three are for `dimension` dimensions."""
        g = geometry
        sft_time, sft_cosine = sft_peak(g)
        pairs = cf.pairs_for_share(g.pull, g.contrast_squared, g.angle, dimension)
        qualities = (g.student, g.chosen, g.rejected)
        chance = cf.chance_to_improve(*qualities, dimension) if dimension > 3 else math.nan
        return cls(
            gap=g.gap,
            pull=g.pull,
            contrast_squared=g.contrast_squared,
            disagreement=float(cf.disagreement(g.angle)),
            improves=bool(cf.improves(g.student, g.gap, g.pull)),
            initial_cosine=g.student,
            best_step=float(cf.best_step(*g.line, g.norm)),
            best_cosine=float(cf.best_cosine(*g.line)),
            break_even_step=float(cf.break_even_step(*g.line, g.norm)),
            limit_cosine=float(cf.limit_cosine(g.gap, g.contrast_squared)),
            sft_improves=bool(cf.sft_improves(g.student, g.chosen, g.gram[1, 2])),
            sft_best_time=sft_time,
            sft_best_cosine=sft_cosine,
            sft_limit_cosine=float(cf.sft_limit(g.chosen)),
            threshold_dimension=cf.threshold_dimension(*qualities),
            chance_to_improve=chance,
            pairs_for_half=float(pairs),
        )


@lru_cache(maxsize=256)
def sft_peak(geometry: Geometry) -> tuple[float, float]:
    """(learning rate x steps, cosine) at the peak of population SFT; time 0 if it only falls."""
    rate = SFT_RATE * max(1.0, geometry.norm)  # a longer student takes longer to turn
    path = cf.sft_trajectory(geometry.gram, rate, SFT_STEPS, geometry.norm)
    best = int(path.argmax())
    return best * rate, float(path[best])


def default_distance(theory: Theory, norm: float) -> float:
    """Choose the distance of a simulation without a given rate: the peak, if it is finite.

    Args:
        theory: Population results.
        norm: The student's norm r.

    Returns:
        A distance s along w.
    """
    if theory.best_step == 0:
        return norm / 10
    return theory.best_step if math.isfinite(theory.best_step) else 2 * norm


def default_rate(geometry: Geometry, theory: Theory, plan: Plan) -> float:
    """Choose the learning rate with which `plan.steps` steps end at the peak of the plan's loss.

    Args:
        geometry: The setting's directions.
        theory: Its population results.
        plan: The simulation, its rate not used.

    Returns:
        The rate.
    """
    if plan.loss == "sft":
        return (theory.sft_best_time or geometry.norm) / plan.steps
    distance = default_distance(theory, geometry.norm)
    kappa = float(cf.label_gain(plan.temperature))
    if plan.loss == "preference":
        return 2 * distance / (kappa * plan.steps)
    return dpo_rate(geometry.angle, plan.beta, plan.steps, distance)


def dpo_rate(phi: float, beta: float, steps: int, distance: float) -> float:
    """Find the rate with which population DPO travels a distance.

    Args:
        phi: Angle between the teachers.
        beta: Of DPO.
        steps: Number of steps.
        distance: Distance s along w to travel in them.

    Returns:
        The rate.
    """
    speed = beta * cf.dpo_speed(phi, beta * np.linspace(0, distance, 101))
    if not (speed > 0).all():  # teachers that never disagree: DPO stands still
        return 1.0
    # Steps of the discrete path are at least as long as the flow's: the flow's time is enough.
    longest = float(np.trapezoid(1 / speed, dx=distance / 100)) / steps * 1.01
    return brentq(lambda rate: cf.dpo_path(phi, beta, rate, steps)[-1] - distance, 0, longest)


def predicted_cosine(geometry: Geometry, plan: Plan) -> float:
    """Predict the cosine at the end of a simulation.

    Inputs are taken as normal; for preference training the number of pairs counts. Sampled labels
    (temperature > 0) and the losses of SFT and DPO have population results only; DPO with sampled
    labels has none.

    Args:
        geometry: The setting's directions.
        plan: The simulation.

    Returns:
        The cosine; NaN where there is no result.
    """
    g, kappa = geometry, float(cf.label_gain(plan.temperature))
    if plan.loss == "sft":
        return float(cf.sft_trajectory(g.gram, plan.rate, plan.steps, g.norm, kappa)[-1])
    contrast = g.contrast_squared
    if plan.loss == "dpo":
        if plan.temperature:
            return math.nan
        s = float(cf.dpo_path(g.angle, plan.beta, plan.rate, plan.steps)[-1])
    else:
        s = float(cf.travelled(plan.rate, plan.steps, kappa))
        if not plan.temperature:
            pairs = plan.steps * plan.batch
            noisy = cf.noisy_contrast_squared(contrast, g.angle, plan.dimension, pairs)
            contrast = float(noisy)
    return float(cf.cosine(g.student, g.gap, g.pull, contrast, s, g.norm))


@dataclass(frozen=True)
class Measured:
    """One simulation's end: means over trials with standard errors (NaN for a single trial)."""

    plan: Plan
    cosine: float
    cosine_error: float
    accuracy: float
    accuracy_error: float
    predicted_cosine: float

    @classmethod
    def of(cls, geometry: Geometry, plan: Plan) -> Measured:
        """Run `plan` and keep its last record."""
        result = simulate(geometry, replace(plan, records=(plan.steps,)))
        cosine, accuracy = result.cosine, result.accuracy
        return cls(
            plan=plan,
            cosine=float(cosine.mean[-1]),
            cosine_error=float(cosine.error[-1]),
            accuracy=float(accuracy.mean[-1]),
            accuracy_error=float(accuracy.error[-1]),
            predicted_cosine=predicted_cosine(geometry, plan),
        )
