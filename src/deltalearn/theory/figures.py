"""The figures: each function computes one panel from a setting, theory first, then simulation.

All are about a setting's cosines; simulations use its number of trials and its seed, so that the
same options give the same figures. Which panels, and in which order: `PANELS` at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from deltalearn.theory import closed_form as cf
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.imitation import race_correlated, race_independent, shared_errors
from deltalearn.theory.panels import MUTED, Panel, colour, curve, level, mark, points
from deltalearn.theory.phases import phase_dimension, phase_quality
from deltalearn.theory.setting import LEAST_RANDOM, QUIET, Setting, shown, widest, with_gap
from deltalearn.theory.simulate import Estimate, Result, simulate

MARKED_PAIRS = 150_000  # of the original headline run
MANY = 8  # times the trials, where directions are drawn anew in each


# -- The line that preference training walks ---------------------------------------------------


def _noisy_mean(geometry: Geometry, d: int, s: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Mean cosine over random errors in d dimensions after s on n pairs (arrays alike)."""

    def at(distance: float, pairs: float) -> float:
        def value(k, N2):
            phi = 2 * np.arcsin(np.sqrt(np.clip(N2, 0, 4)) / 2)
            noisy = cf.noisy_contrast_squared(N2, phi, d, pairs)
            return cf.cosine(geometry.student, geometry.gap, k, noisy, distance, geometry.norm)

        return cf.over_random_errors(
            value, geometry.student, geometry.chosen, geometry.rejected, d
        )[0]

    return np.array([at(a, b) for a, b in zip(s, n, strict=True)])


def _walks(
    setting: Setting, cases: list[tuple[str, Geometry, int]], batch: int, **panel: Any
) -> Panel:
    """Theory and simulation along the line for each (label, geometry, dimension)."""
    steps, reach = 40, setting.reach
    rate = 2 * reach / (steps * cf.SIGN_GAIN)
    times = np.linspace(0, steps, 61)[1:]
    distance = cf.travelled(rate, times)
    walks = []
    for i, (label, geometry, d) in enumerate(cases):
        plan = setting.plan(
            many=MANY, dimension=d, steps=steps, batch=batch, rate=rate, random_errors=True,
            records=shown(8, steps, i / 4),
        )  # fmt: skip
        theory = _noisy_mean(geometry, d, distance, times * batch)
        walks.append((label, np.append(geometry.student, theory), simulate(geometry, plan)))

    def draw(axes: Axes) -> None:
        for i, (label, theory, result) in enumerate(walks):
            curve(axes, np.append(0, distance), theory, i, label)
            points(axes, cf.travelled(rate, result.steps), result.cosine, i)
        level(axes, setting.geometry.student, "start a_0")
        axes.set_xlim(0, reach * 1.02)
        axes.set_xlabel("distance along the contrast, s")
        axes.set_ylabel("student's cosine to the truth")

    return Panel(**panel, draw=draw, legend=(1, 3))


def line_gaps(setting: Setting) -> Panel:
    """Cosine over s for half, one and two times the gap."""
    gap, limit = setting.geometry.gap or 0.1, widest(setting.geometry)
    gaps = [g for g in (gap / 2, gap, 2 * gap) if abs(g) <= limit + 1e-9]
    d = max(LEAST_RANDOM, min(setting.dimension, 100))
    cases = [(f"D = {g:.3g}", with_gap(setting.geometry, g), d) for g in gaps]
    return _walks(
        setting,
        cases,
        batch=200,
        name="line-gaps",
        title="A wider gap between the teachers lifts the student higher and for longer",
        description=f"Student's cosine over distance s for gaps {', '.join(c[0] for c in cases)} "
        f"in {d} dimensions, 200 pairs a step: theory as lines, simulation as points with bars of "
        "two standard errors.",
    )


def line_dimensions(setting: Setting) -> Panel:
    """Cosine over s for three dimensions and the same number of pairs."""
    sizes = sorted({max(LEAST_RANDOM, round(setting.dimension / part)) for part in (10, 3, 1)})
    cases = [(f"d = {d:,}", setting.geometry, d) for d in sizes]
    return _walks(
        setting,
        cases,
        batch=50,
        name="line-dimensions",
        title="With the same pairs, more dimensions bring more noise, and less gain",
        description=f"Student's cosine over distance s in {', '.join(c[0] for c in cases)} "
        "with 50 pairs a step: theory with its noise term as lines, simulation as points with bars "
        "of two standard errors.",
    )


# -- DPO: the same line, slower ----------------------------------------------------------------


def early_stopping(setting: Setting) -> Panel:
    """Preference and DPO over steps, from the same first step, past peak and break-even."""
    g, steps = setting.geometry, 60
    rate = 2 * setting.reach / (steps * cf.SIGN_GAIN)
    runs: list[tuple[str, np.ndarray, Result]] = []
    for label, beta in (("preference", None), ("DPO, β = 5", 5.0), ("DPO, β = 50", 50.0)):
        # DPO starts with beta / 2 times the speed of the linear loss: divide that out.
        own = rate if beta is None else 2 * rate / beta
        loss = {"loss": "preference"} if beta is None else {"loss": "dpo", "beta": beta}
        plan = setting.plan(steps=steps, rate=own, records=shown(8, steps), **QUIET, **loss)
        times = np.arange(steps + 1)
        s = cf.travelled(own, times) if beta is None else cf.dpo_path(g.angle, beta, own, steps)
        runs.append((label, cf.cosine(*g.line, s, g.norm), simulate(g, plan)))

    def draw(axes: Axes) -> None:
        for i, (label, theory, result) in enumerate(runs):
            curve(axes, np.arange(steps + 1), theory, i, label)
            points(axes, result.steps, result.cosine, i)
        level(axes, g.student, "start a_0")
        _mark_peak(axes, setting, float(cf.travelled(rate, 1)))
        axes.set(xlabel="training step t", ylabel="student's cosine to the truth")

    return Panel(
        "early-stopping",
        "DPO walks the same line ever more slowly: its peak is as high, and easier to hit",
        "Cosine over steps for the linear preference loss and for DPO with beta 5 and 50, started "
        "at the same speed: theory as lines, simulation as points.",
        draw,
        legend=(1, 3),
    )


def _mark_peak(axes: Axes, setting: Setting, each: float) -> None:
    """Name peak and break-even of the line that moves by `each` a step."""
    theory = setting.theory
    if 0 < theory.best_step < math.inf:
        mark(axes, theory.best_step / each, theory.best_cosine, "peak s*", (6, 8))
    if 0 < theory.break_even_step < math.inf:
        at = (theory.break_even_step / each, theory.initial_cosine)
        mark(axes, *at, "break-even", (-6, -16), ha="right")


# -- How many pairs ----------------------------------------------------------------------------


def sample_size(setting: Setting) -> Panel:
    """Best cosine over the number of pairs, for several dimensions."""
    g, pairs = setting.geometry, np.geomspace(100, 1e7, 200)
    sizes = (30, 300, 3_000, 30_000)

    def best(d: float, n: ArrayLike) -> np.ndarray:
        noisy = cf.noisy_contrast_squared(g.contrast_squared, g.angle, d, n)
        return cf.best_cosine(g.student, g.gap, g.pull, noisy)

    counts = {30: (100, 300, 1_000, 3_000), 300: (300, 1_000, 3_000)}
    measured = {
        d: Estimate.of(np.stack([_full_batch(setting, d, n) for n in counts[d]], axis=1))
        for d in counts
    }

    def draw(axes: Axes) -> None:
        for i, d in enumerate(sizes):
            curve(axes, pairs, best(d, pairs), i, f"d = {d:,}")
            half = float(cf.pairs_for_share(g.pull, g.contrast_squared, g.angle, d))
            if pairs[0] <= half <= pairs[-1]:
                style = {"markerfacecolor": "none", "markeredgecolor": colour(i)}
                axes.plot([half], [best(d, half)], "o", markersize=11, markeredgewidth=1.8, **style)
            if d in measured:
                points(axes, np.array(counts[d]), measured[d], i)
        ring = {"markerfacecolor": "none", "markeredgecolor": MUTED, "markersize": 9}
        axes.plot([], [], "o", markeredgewidth=1.6, label="half of the gain", **ring)
        _marked_pairs(axes)
        axes.set(xscale="log", xlabel="pairs n", ylabel="best cosine to the truth")

    return Panel(
        "sample-size",
        "Pairs needed grow in proportion to the dimensions",
        "Best cosine over the number of pairs in 30 to 30,000 dimensions, with half of the gain "
        "ringed and 150,000 pairs marked: theory as lines, simulation as points.",
        draw,
        legend=(2, 3),
    )


def _marked_pairs(axes: Axes) -> None:
    axes.axvline(MARKED_PAIRS, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    place = {"xytext": (4, 4), "textcoords": "offset points", "size": 10.5, "color": MUTED}
    axes.annotate("150,000 pairs", (MARKED_PAIRS, 0), xycoords=axes.get_xaxis_transform(), **place)


def _full_batch(setting: Setting, d: int, n: int) -> np.ndarray:
    """Cosines after one step on n pairs, as long as is best for so many."""
    g = setting.geometry
    noisy = float(cf.noisy_contrast_squared(g.contrast_squared, g.angle, d, n))
    best = float(cf.best_step(g.student, g.gap, g.pull, noisy, g.norm))
    best = min(best, 4 * g.norm) or g.norm * 1e-6
    plan = setting.plan(many=MANY // 2, dimension=d, steps=1, batch=n, rate=2 * best / cf.SIGN_GAIN)
    return simulate(g, plan).cosines[:, -1]


# -- Where the theory stops --------------------------------------------------------------------

OTHER_INPUTS = (
    ("elliptical, t with 3 d.f.", {"inputs": "elliptical", "freedom": 3.0}),
    ("independent t, 3 d.f.", {"inputs": "heavy", "freedom": 3.0}),
    ("correlated 0.8", {"inputs": "correlated", "correlation": 0.8}),
    ("normal", {"inputs": "normal"}),
)


def other_inputs(setting: Setting) -> Panel:
    """Cosine along the path for other inputs, against the theory, which is for normal ones."""
    g, steps = setting.geometry, 40
    rate = 2 * setting.reach / (steps * cf.SIGN_GAIN)
    size = {"dimension": max(QUIET["dimension"], 8), "batch": QUIET["batch"]}
    runs = []
    for label, inputs in OTHER_INPUTS:
        plan = setting.plan(
            steps=steps, rate=rate, many=MANY // 2, records=shown(8, steps), **size, **inputs
        )
        runs.append((label, simulate(g, plan)))

    def draw(axes: Axes) -> None:
        predicted = cf.cosine(*g.line, cf.travelled(rate, np.arange(steps + 1)), g.norm)
        ends = [predicted.min(), predicted.max()]
        axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        for i, (label, result) in enumerate(runs):
            x = cf.cosine(*g.line, cf.travelled(rate, result.steps), g.norm)
            axes.plot(x, result.cosine.mean, color=colour(i), linewidth=1.2, alpha=0.6)
            points(axes, x, result.cosine, i, label)
        axes.set_xlabel("cosine that theory predicts for normal inputs")
        axes.set_ylabel("measured cosine")

    return Panel(
        "other-inputs",
        "Heavy tails change the speed; correlated inputs change the direction",
        "Measured against predicted cosine along the path for normal, elliptical, independent "
        "heavy-tailed and correlated inputs; the dashed diagonal is agreement.",
        draw,
        legend=(2, 2),
    )


PANELS = (
    line_gaps,
    line_dimensions,
    phase_dimension,
    phase_quality,
    early_stopping,
    shared_errors,
    race_independent,
    race_correlated,
    sample_size,
    other_inputs,
)
