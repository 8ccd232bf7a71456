"""The setting of the figures, and small parts that several of them need."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deltalearn.theory.geometry import Geometry
from deltalearn.theory.predictions import Theory, default_distance
from deltalearn.theory.simulate import Plan

LEAST_RANDOM = 6  # dimensions, below which random error directions are hardly random
QUIET = {"dimension": 20, "batch": 250}  # so many pairs a dimension that noise hardly shows


@dataclass(frozen=True)
class Setting:
    """The directions that the figures are about, and the size and seed of their simulations."""

    geometry: Geometry
    dimension: int
    trials: int
    seed: int

    @property
    def theory(self) -> Theory:
        """Population results of the geometry."""
        return Theory.of(self.geometry, self.dimension)

    @property
    def reach(self) -> float:
        """The longest distance s shown: somewhat beyond the break-even, if there is one."""
        theory = self.theory
        if 0 < theory.break_even_step < math.inf:
            return 2 * theory.break_even_step
        return 4 * default_distance(theory, self.geometry.norm)

    def plan(self, many: int = 1, **given) -> Plan:
        """A plan with the setting's seed and `many` times its trials."""
        return Plan(trials=many * self.trials, seed=self.seed, **given)


def with_gap(geometry: Geometry, gap: float) -> Geometry:
    """The same student and errors, teachers `gap` apart around the same middle."""
    middle = (geometry.chosen + geometry.rejected) / 2
    return replace(geometry, chosen=middle + gap / 2, rejected=middle - gap / 2)


def widest(geometry: Geometry) -> float:
    """The widest gap that the middle of the teachers' cosines allows."""
    return 2 * (1 - abs(geometry.chosen + geometry.rejected) / 2)


def shown(records: int, steps: int, shift: float = 0) -> tuple[int, ...]:
    """Steps to measure at, evenly spaced; shifted so that the bars of series stand side by side."""
    at = {round((i - shift) * steps / records) for i in range(1, records + 1)}
    return tuple(sorted(at - {0}))
