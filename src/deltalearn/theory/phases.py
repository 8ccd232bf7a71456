"""Two phase diagrams: where small steps help, by how much, and the boundary in closed form."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from scipy.special import ndtri

from deltalearn.theory import closed_form as cf
from deltalearn.theory.geometry import INDEPENDENT
from deltalearn.theory.panels import BANDS, INK, MUTED, PAPER, Panel, band_scale, mark
from deltalearn.theory.setting import LEAST_RANDOM, Setting

LEVELS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
CONFIDENCE = 0.95
SCALE_MARGIN = 86
GRID_POINTS = 161


def safe_gain(a_0, a_c, a_r, d) -> np.ndarray:
    """Best gain in cosine that 95 of 100 draws of random error directions reach. (R8, R11)

    The gain falls as k grows, so it is the gain at the 95th percentile of k (normal: its mean and
    deviation are exact), at the mean of N^2.
    """
    D = a_c - a_r
    pull = a_0 * D + ndtri(CONFIDENCE) * cf.pull_deviation(a_0, a_c, a_r, d)
    return cf.best_cosine(a_0, D, pull, 2 - 2 * a_c * a_r) - a_0


def phase_dimension(setting: Setting) -> Panel:
    """Gain over (gap, dimension), with the threshold dimension as its boundary."""
    g = setting.geometry
    middle = (g.chosen + g.rejected) / 2
    widest = min(0.6, 2 * (1 - abs(middle)))
    gap = np.linspace(widest / 200, widest, GRID_POINTS)
    size = np.geomspace(LEAST_RANDOM, 1e5, GRID_POINTS)
    D, d = np.meshgrid(gap, size)
    gain = safe_gain(g.student, middle + D / 2, middle - D / 2, d)
    boundary = [
        cf.threshold_dimension(g.student, middle + x / 2, middle - x / 2, CONFIDENCE) for x in gap
    ]
    exact = _exact_boundary(g.student, middle, widest)

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.contourf(gap, size, gain, levels=LEVELS, colors=BANDS, extend="max")
        # A dark line with a light rim, seen on any band.
        axes.plot(gap, boundary, color=PAPER, linewidth=4.5, zorder=3)
        label = "threshold dimension, closed form"
        axes.plot(gap, boundary, color=INK, linewidth=2, zorder=3, label=label)
        axes.plot(
            *exact, "o", color=INK, markersize=5, zorder=4, label="the same, exact quadrature"
        )
        if gap[0] <= g.gap <= gap[-1] and size[0] <= setting.dimension <= size[-1]:
            mark(axes, g.gap, setting.dimension, "this setting", (10, -3))
        axes.set(xlim=(0, gap[-1]), ylim=(size[0], size[-1]))
        axes.text(0.03, 0.05, "no gain to rely on", transform=axes.transAxes, color=MUTED)
        axes.set_xlabel("gap between the teachers, D = a_c − a_r")
        axes.set_ylabel("input dimensions d", labelpad=0)
        band_scale(axes, LEVELS, "gain")

    return Panel(
        "phase-dimension",
        "A small gap is enough once there are many dimensions",
        "Best gain in cosine that 95 of 100 random draws of the errors reach, over gap and "
        "dimension, with the boundary below which there is none.",
        draw,
        legend=(2, 1),
        right=SCALE_MARGIN,
    )


def _exact_boundary(a_0: float, middle: float, widest: float) -> tuple[list[float], list[float]]:
    """(gaps, dimensions) with an exact chance of 95 % to improve, where they are in the figure."""
    gaps, sizes = [], []
    for gap in np.linspace(0, widest, 9)[1:]:
        low, high = np.log(4), np.log(1e5)

        def enough(size: float, gap=gap) -> bool:
            d = round(np.exp(size))
            return cf.chance_to_improve(a_0, middle + gap / 2, middle - gap / 2, d) >= CONFIDENCE

        if not enough(high) or enough(np.log(LEAST_RANDOM)):
            continue
        for _ in range(14):
            half = (low + high) / 2
            low, high = (low, half) if enough(half) else (half, high)
        gaps.append(float(gap))
        sizes.append(float(np.exp(high)))
    return gaps, sizes


def phase_quality(setting: Setting) -> Panel:
    """Gain over (student, chosen teacher) at the setting's gap, with the boundary D = a_0 k."""
    g = setting.geometry
    gap = g.gap if 0 < g.gap < 1 else 0.2
    student = np.linspace(0.02, 0.995, GRID_POINTS)
    chosen = np.linspace(gap - 0.3, 0.995, GRID_POINTS)
    a_0, a_c = np.meshgrid(student, chosen)
    pull = _pull(setting, a_0, a_c, a_c - gap)
    s_c, s_r = np.sqrt(1 - a_c**2), np.sqrt(1 - (a_c - gap) ** 2)
    contrast = 2 - 2 * (a_c * (a_c - gap) + s_c * s_r * g.errors[2])
    gain = cf.best_cosine(a_0, gap, pull, contrast) - a_0

    def draw(axes: Axes) -> None:
        axes.contourf(student, chosen, gain, levels=LEVELS, colors=BANDS, extend="max")
        excess = gap - a_0 * pull
        if (excess < 0).any():
            style = {"colors": [INK], "linewidths": 2}
            axes.contour(student, chosen, excess, levels=[0], **style)
        axes.plot([], [], color=INK, linewidth=2, label="D = a_0 k: no gain to the right")
        axes.plot(student, student, color=MUTED, linewidth=1.4, linestyle=(0, (5, 2)),
                  label="below: both teachers worse than the student")  # fmt: skip
        if g.gap == gap and student[0] <= g.student <= student[-1] and g.chosen >= chosen[0]:
            mark(axes, g.student, g.chosen, "this setting", (2, -20), ha="right")
        axes.set(xlim=(0, 1), ylim=(chosen[0], 1))
        axes.set(xlabel="student's cosine a_0", ylabel="chosen teacher's cosine a_c")
        band_scale(axes, LEVELS, "gain")

    return Panel(
        "phase-quality",
        "A student better than both teachers gains too, unless it is too good already",
        "Best gain in cosine over student's and chosen teacher's quality at a fixed gap, with the "
        "boundary beyond which there is none and the diagonal below which both teachers are worse.",
        draw,
        legend=(2, 1),
        right=SCALE_MARGIN,
    )


def _pull(setting: Setting, a_0: np.ndarray, a_c: np.ndarray, a_r: np.ndarray) -> np.ndarray:
    """k of the given error correlations; if none are given, its 95th percentile when random."""
    g, D = setting.geometry, a_c - a_r
    if g.errors == INDEPENDENT:
        d = max(LEAST_RANDOM, setting.dimension)
        return a_0 * D + ndtri(CONFIDENCE) * cf.pull_deviation(a_0, a_c, a_r, d)
    s_0, s_c, s_r = (np.sqrt(1 - a**2) for a in (a_0, a_c, a_r))
    return a_0 * D + s_0 * (s_c * g.errors[0] - s_r * g.errors[1])
