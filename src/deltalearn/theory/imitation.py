"""Figures that compare preference training with imitation (SFT on the chosen labels)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from deltalearn.theory import closed_form as cf
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.panels import MUTED, Panel, curve, level, points
from deltalearn.theory.predictions import sft_peak
from deltalearn.theory.setting import QUIET, Setting
from deltalearn.theory.simulate import Estimate, simulate

METHODS = {"preference": "preference", "sft": "SFT on the chosen labels"}  # by their losses
SFT_RATE, SFT_STEPS = 0.1, 200
RACE_CORRELATION = 0.8


def _common(geometry: Geometry, c: float) -> Geometry:
    """All three errors correlated by c."""
    return replace(geometry, errors=(c, c, c))


def shared_errors(setting: Setting) -> Panel:
    """Best gain of preference and SFT as one error is common to student and teachers."""
    fine, coarse = np.linspace(0, 0.95, 96), (0.0, 0.3, 0.6, 0.9)
    sparse = fine[::5]  # imitation has no closed form: each value takes a whole trajectory
    preference = [float(cf.best_cosine(*_common(setting.geometry, c).line)) for c in fine]
    imitation = [sft_peak(_common(setting.geometry, float(c)))[1] for c in sparse]
    theory = [np.array(preference), np.interp(fine, sparse, imitation)]
    start = setting.geometry.student
    gains = [
        Estimate.of(np.stack([_at_peak(setting, c, loss) for c in coarse], axis=1) - start)
        for loss in METHODS
    ]

    def draw(axes: Axes) -> None:
        for i, label in enumerate(METHODS.values()):
            curve(axes, fine, theory[i] - start, i, label)
            points(axes, np.array(coarse), gains[i], i)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set(xlabel="correlation c of all three errors", ylabel="best gain in cosine")

    return Panel(
        "shared-errors",
        "Preference cancels what both teachers get wrong alike; imitation learns it",
        "Best gain in cosine over the common correlation of the errors, for preference training "
        "and for SFT: theory as lines, simulation as points.",
        draw,
        legend=(1, 2),
    )


def _at_peak(setting: Setting, c: float, loss: str) -> np.ndarray:
    """Cosines of a simulation that stops at the peak of theory (at the start if there is none)."""
    geometry, steps = _common(setting.geometry, c), 40
    if loss == "sft":
        rate = sft_peak(geometry)[0] / steps
    else:
        best = min(float(cf.best_step(*geometry.line, geometry.norm)), 4 * geometry.norm)
        rate = 2 * best / (steps * cf.SIGN_GAIN)
    records = None if rate > 0 else (0,)
    plan = setting.plan(steps=steps, rate=rate or 1.0, loss=loss, records=records, **QUIET)
    return simulate(geometry, plan).cosines[:, -1]


def _race(setting: Setting, c: float, name: str, title: str, which: str) -> Panel:
    """Preference and SFT over learning rate x steps, on a log axis."""
    geometry = _common(setting.geometry, c)
    rate, long = SFT_RATE * geometry.norm, 800
    time = np.geomspace(0.01 * geometry.norm, rate * long, 300)
    path = cf.sft_trajectory(geometry.gram, rate, long, geometry.norm)
    theory = [
        cf.cosine(*geometry.line, cf.travelled(1, time), geometry.norm),
        np.interp(time, rate * np.arange(long + 1), path),
    ]
    how: dict[str, Any] = {
        "steps": SFT_STEPS,
        "rate": rate,
        "records": (1, 3, 10, 25, 75, SFT_STEPS),
        **QUIET,
    }
    results = [simulate(geometry, setting.plan(loss=loss, **how)) for loss in METHODS]

    def draw(axes: Axes) -> None:
        for i, label in enumerate(METHODS.values()):
            curve(axes, time, theory[i], i, label)
            points(axes, rate * results[i].steps, results[i].cosine, i)
        level(axes, geometry.student, "start a_0")
        level(axes, geometry.chosen, "chosen teacher a_c")
        axes.set_xscale("log")
        axes.margins(y=0.09)
        axes.set_xlabel("learning rate × steps, η t")
        axes.set_ylabel("student's cosine to the truth")

    return Panel(
        name,
        f"{title}: {_who_gains(geometry)}",
        f"Cosine of preference training and of SFT over learning rate times steps, {which}: "
        "theory as lines, simulation as points.",
        draw,
        legend=(1, 2),
    )


def _who_gains(geometry: Geometry) -> str:
    """The finding of a race, whatever the setting."""
    start = geometry.student + 1e-12
    preference, imitation = float(cf.best_cosine(*geometry.line)), sft_peak(geometry)[1]
    if preference <= start and imitation <= start:
        return "neither preference nor imitation gains"
    if imitation <= start:
        return "preference gains at first, and imitation only loses"
    if preference <= start:
        return "imitation gains at first, and preference only loses"
    more = "imitation" if imitation > preference else "preference"
    return f"stopped early, both gain, {more} more"


def race_independent(setting: Setting) -> Panel:
    """Preference training against SFT where all errors are orthogonal."""
    return _race(setting, 0, "race-independent", "Independent errors", "independent errors")


def race_correlated(setting: Setting) -> Panel:
    """Preference training against SFT where the student shares the teachers' errors."""
    c = RACE_CORRELATION
    return _race(setting, c, "race-correlated", "Shared errors", f"errors correlated by {c}")
