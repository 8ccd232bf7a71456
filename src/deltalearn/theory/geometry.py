"""The setting: a truth, a student and two teachers as directions, described by a few cosines.

x ~ N(0, I_d). The truth theta* is a unit vector. The student theta_0 has norm r and direction u_0;
the teachers label by sign(u_c . x) and sign(u_r . x). Each direction is split into its part along
the truth and its error:

    u_i = a_i theta* + sqrt(1 - a_i^2) e_i,    e_i unit, orthogonal to theta*,  i in {0, c, r}

so the whole geometry is three cosines a_i and three correlations e_i . e_j of the errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deltalearn.errors import UserError

INDEPENDENT = (0.0, 0.0, 0.0)
ROUNDING = 1e-9


@dataclass(frozen=True)
class Geometry:
    """Cosines to the truth of student, chosen and rejected teacher, and how their errors correlate.

    norm: the student's norm r > 0. errors: correlations (e_0 . e_c, e_0 . e_r, e_c . e_r), none
    (orthogonal errors) by default. Raises UserError for a cosine outside [-1, 1], a norm that is
    not positive, or correlations that no three directions can have.
    """

    student: float
    chosen: float
    rejected: float
    norm: float = 1.0
    errors: tuple[float, float, float] = INDEPENDENT

    def __post_init__(self) -> None:
        for name in ("student", "chosen", "rejected"):
            value = getattr(self, name)
            if not math.isfinite(value) or abs(value) > 1:
                raise UserError(f"cosine of the {name} is {value}; it must lie in [-1, 1]")
        if not math.isfinite(self.norm) or self.norm <= 0:
            raise UserError(f"norm of the student is {self.norm}; it must be positive")
        for value in self.errors:
            if not abs(value) <= 1 + ROUNDING:
                raise UserError(f"errors: {value} is no correlation; they lie in [-1, 1]")
        lowest = np.linalg.eigvalsh(self.correlation)[0]
        if lowest < -ROUNDING:
            raise UserError(
                "errors is not positive semi-definite (lowest eigenvalue "
                f"{lowest:.3g}): no three directions have these correlations"
            )

    @property
    def correlation(self) -> np.ndarray:
        """The error correlations as an array, (3, 3)."""
        c, r, cr = self.errors
        return np.array([[1, c, r], [c, 1, cr], [r, cr, 1]], dtype=np.float64)

    @property
    def cosines(self) -> np.ndarray:
        """Cosines to the truth, (a_0, a_c, a_r)."""
        return np.array([self.student, self.chosen, self.rejected])

    @property
    def gram(self) -> np.ndarray:
        """Inner products of (theta*, u_0, u_c, u_r), (4, 4)."""
        cosines = self.cosines
        sines = np.sqrt(1 - cosines**2)
        full = np.eye(4)
        full[0, 1:] = full[1:, 0] = cosines
        full[1:, 1:] = np.outer(cosines, cosines) + np.outer(sines, sines) * self.correlation
        return full

    @property
    def gap(self) -> float:
        """D = a_c - a_r: how much better the chosen teacher is."""
        return self.chosen - self.rejected

    @property
    def pull(self) -> float:
        """k = u_0 . w with w = u_c - u_r: the student's own component along the contrast."""
        return float(self.gram[1, 2] - self.gram[1, 3])

    @property
    def contrast_squared(self) -> float:
        """N^2 = |u_c - u_r|^2 = 2 - 2 u_c . u_r."""
        return float(max(0.0, 2 - 2 * self.gram[2, 3]))

    @property
    def line(self) -> tuple[float, float, float, float]:
        """(a_0, D, k, N^2), what the closed form of preference training takes first."""
        return self.student, self.gap, self.pull, self.contrast_squared

    @property
    def angle(self) -> float:
        """phi: angle between the teachers, in [0, pi]; they disagree on a share phi / pi."""
        return 2 * math.asin(min(1.0, math.sqrt(self.contrast_squared) / 2))

    def needed_dimension(self) -> int:
        """Fewest input dimensions in which these directions exist: one, and the errors' rank.

        An error counts only where there is one (|a_i| < 1).
        """
        real = np.abs(self.cosines) < 1
        block = self.correlation[np.ix_(real, real)]
        return 1 + (int(np.linalg.matrix_rank(block, tol=1e-8)) if real.any() else 0)

    def vectors(self, dimension: int) -> np.ndarray:
        """(theta*, u_0, u_c, u_r) as rows in `dimension` dimensions, (4, dimension).

        They fill the first coordinates: x is rotation invariant, so any placement is as good.
        Raises UserError if `dimension` is too small for the angles asked.
        """
        needed = self.needed_dimension()
        if dimension < needed:
            raise UserError(
                f"dimension {dimension} is too small: directions with these cosines and error "
                f"correlations need at least {needed}"
            )
        values, basis = np.linalg.eigh(self.gram)
        order = np.argsort(values)[::-1][:needed]
        roots = basis[:, order] * np.sqrt(np.clip(values[order], 0, None))
        rows = np.zeros((4, dimension))
        rows[:, :needed] = roots
        return rows
