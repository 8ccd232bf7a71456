"""Protects the theory lab: the numbers PAPER.md section 6 lists, the formulas against direct
evaluation, the symmetries a closed form must have, its edge cases, and the simulator's promises
(what it refuses, determinism, memory, the inputs it draws).

test_theory_validation.py compares every closed-form quantity with simulation.
"""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit

from deltalearn.errors import UserError
from deltalearn.theory import closed_form as cf
from deltalearn.theory import simulate as simulation
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.simulate import Estimate, Plan, draw_inputs, simulate

GOLDEN = Geometry(0.8, 0.6, 0.4)  # orthogonal errors


def scalars(g: Geometry) -> tuple[float, float, float, float]:
    return g.student, g.gap, g.pull, g.contrast_squared


# -- golden numbers of PAPER.md, section 6 -------------------------------------------------------


def test_golden_scalars():
    assert (GOLDEN.gap, GOLDEN.pull, GOLDEN.contrast_squared) == pytest.approx((0.2, 0.16, 1.52))
    assert cf.accuracy([0.8, 0.6, 0.4]) == pytest.approx([0.795, 0.705, 0.631], abs=5e-4)
    assert cf.best_step(*scalars(GOLDEN)) == pytest.approx(0.060811, abs=5e-7)
    assert cf.best_cosine(*scalars(GOLDEN)) == pytest.approx(0.802165, abs=5e-7)
    assert cf.break_even_step(*scalars(GOLDEN)) == pytest.approx(0.123499, abs=5e-7)
    limit = cf.limit_cosine(GOLDEN.gap, GOLDEN.contrast_squared)
    assert limit == pytest.approx(0.162221, abs=5e-7)
    assert cf.accuracy(limit) == pytest.approx(0.552, abs=5e-4)


def test_golden_curve():
    steps = [0, 0.03, 0.0608, 0.1235, 0.25, 0.5, 1, 2, 5, 100]
    listed = [0.8, 0.80162, 0.80217, 0.8, 0.78415, 0.72524, 0.59339, 0.43189, 0.28249, 0.16853]
    assert cf.cosine(*scalars(GOLDEN), steps) == pytest.approx(listed, abs=6e-6)


def test_formula_for_orthogonal_errors():
    """T6'': s* = D (1 - a_0^2) / (a_0 (N^2 - D^2)) and its cosine."""
    a, D, _, N2 = scalars(GOLDEN)
    assert cf.best_step(*scalars(GOLDEN)) == pytest.approx(D * (1 - a**2) / (a * (N2 - D**2)))
    peak = a**2 + D**2 * (1 - a**2) ** 2 / (N2 - a**2 * D**2)
    assert cf.best_cosine(*scalars(GOLDEN)) ** 2 == pytest.approx(peak)


def best_within_one(k, N2):
    """Best cosine over s in [0, 1], as the listed numbers take it."""
    step = np.minimum(cf.best_step(0.8, 0.2, k, N2), 1)
    return cf.cosine(0.8, 0.2, k, N2, step)


@pytest.mark.parametrize(
    ("d", "mean", "sd"), [(100, 0.8031, 0.0037), (1000, 0.8023, 0.0010), (10_000, 0.8022, 0.0004)]
)
def test_golden_random_errors(d, mean, sd):
    """Listed from 200 draws (50 at the largest d): within 4 standard errors and their rounding."""
    draws = 50 if d == 10_000 else 200
    got_mean, got_sd = cf.over_random_errors(best_within_one, 0.8, 0.6, 0.4, d)
    assert got_mean == pytest.approx(mean, abs=4 * sd / np.sqrt(draws) + 5e-5)
    assert got_sd == pytest.approx(sd, abs=4 * sd / np.sqrt(draws) + 5e-5)


def test_golden_share_that_improves():
    """Listed: 91.5 % of 200 at d = 100, all of 200 at d = 1,000."""
    share = cf.chance_to_improve(0.8, 0.6, 0.4, 100)
    assert share == pytest.approx(0.915, abs=4 * np.sqrt(0.915 * 0.085 / 200))
    assert cf.chance_to_improve(0.8, 0.6, 0.4, 1000) > 0.9999


# -- formulas against direct evaluation ----------------------------------------------------------


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_peak_and_break_even_against_vectors_and_a_fine_grid():
    """50 draws at d = 50 with r = 1.7: the formulas meet the vectors to 1e-12, and no point of a
    fine grid is better than the peak, or better than the start beyond the break-even step."""
    rng, tried = np.random.default_rng(0), 0
    while tried < 50:
        truth = unit(rng.standard_normal(50))
        u_0, u_c, u_r = unit(truth * rng.uniform(1, 8, (3, 1)) + rng.standard_normal((3, 50)))
        w, r = u_c - u_r, 1.7
        a, D, k, N2 = u_0 @ truth, w @ truth, u_0 @ w, w @ w
        if not (a * k < D < a * np.sqrt(N2) and a * N2 > k * D):
            continue
        tried += 1

        def direct(s, u_0=u_0, w=w, truth=truth, r=r):
            return unit(r * u_0 + np.asarray(s)[..., None] * w) @ truth

        peak, even = cf.best_step(a, D, k, N2, r), cf.break_even_step(a, D, k, N2, r)
        top = cf.best_cosine(a, D, k, N2)
        grid = np.linspace(0, 3 * even, 20_001)
        curve = direct(grid)
        assert np.abs(cf.cosine(a, D, k, N2, grid, r) - curve).max() < 1e-12
        assert abs(direct(peak) - top) < 1e-12
        assert curve.max() < top + 1e-12
        assert abs(grid[curve.argmax()] - peak) <= grid[1]
        assert abs(direct(even) - a) < 1e-12
        assert curve[grid > even * (1 + 1e-6)].max() < a
        assert curve[(grid > 1e-6 * even) & (grid < even * (1 - 1e-6))].min() > a


def test_gradient_of_the_pair_loss_by_finite_differences_and_monte_carlo():
    """T1 and T2: the same at any theta, namely -w / sqrt(2 pi)."""
    rng, d, n = np.random.default_rng(1), 20, 400_000
    g = Geometry(0.5, 0.6, 0.4)
    _, _, u_c, u_r = g.vectors(d)
    x = rng.standard_normal((n, d))
    y_c, y_r = np.sign(x @ u_c), np.sign(x @ u_r)

    def loss(theta):
        z = x @ theta
        return (np.logaddexp(0, -y_c * z) - np.logaddexp(0, -y_r * z)).mean()

    mean = ((y_r - y_c)[:, None] / 2 * x).mean(0)
    for theta in rng.standard_normal((2, d)):
        slopes = [(loss(theta + h) - loss(theta - h)) / 2e-3 for h in 1e-3 * np.eye(d)[:3]]
        assert slopes == pytest.approx(mean[:3], abs=1e-9)
    assert np.abs(mean + (u_c - u_r) / np.sqrt(2 * np.pi)).max() < 4 * np.sqrt(0.4 / n)
    assert cf.travelled(1, 1) == pytest.approx(1 / np.sqrt(2 * np.pi))
    assert cf.travelled(0.3, 7) == pytest.approx(2.1 / np.sqrt(2 * np.pi))


@pytest.mark.parametrize("temperature", [0, 1e-3, 0.01, 0.049, 0.05, 0.07, 0.2, 1, 10, 100])
def test_label_gain_against_integration(temperature):
    def integrand(z):
        sharp = 1.0 if temperature == 0 else np.tanh(z / (2 * temperature))
        return 2 * z * sharp * stats.norm.pdf(z)

    points = [p for p in (3 * temperature, 12 * temperature, 50 * temperature) if 0 < p < 12]
    exact = quad(integrand, 0, 12, points=points or None, epsabs=1e-13, epsrel=1e-12, limit=300)[0]
    assert cf.label_gain(temperature) == pytest.approx(exact, rel=1e-10)


def test_label_gain_and_shrink_have_their_limits():
    assert cf.label_gain(0) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-15)
    assert cf.shrink(np.inf) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-15)
    assert cf.shrink(1e-4) == pytest.approx(0.5e-4, rel=1e-6)  # tanh(x) is x near 0
    assert cf.shrink(0) == pytest.approx(0, abs=1e-14)
    assert np.all(np.diff(cf.label_gain(np.geomspace(1e-3, 50, 2000))) < 0)


@pytest.mark.parametrize("phi", [0.05, 1.3, 3.0, np.pi])
def test_dpo_speed_against_the_wedge(phi):
    """Direct integration over the wedge of disagreement in polar coordinates."""
    N, (nodes, weight) = 2 * np.sin(phi / 2), np.polynomial.legendre.leggauss(150)
    a, weight = nodes * phi / 2, weight * phi / 2 / np.pi
    radius = np.geomspace(1e-6, 12, 2000)
    for b in (0.0, 0.5, 4.0, 50.0):
        project = N * radius * np.cos(a)[:, None]
        density = radius * np.exp(-(radius**2) / 2)
        inner = np.trapezoid(density * project * expit(-b * project), radius)
        assert cf.dpo_speed(phi, b) == pytest.approx(weight @ inner / N**2, rel=2e-5)
    assert cf.dpo_speed(phi, 0) == pytest.approx(1 / (2 * np.sqrt(2 * np.pi)), rel=1e-9)


def test_dpo_path_starts_at_half_beta_times_the_linear_speed_and_slows():
    path = cf.dpo_path(GOLDEN.angle, 5.0, 0.01, 60)
    assert path.shape == (61,)
    assert path[1] == pytest.approx(5 / 2 * cf.travelled(0.01, 1))
    assert np.all(np.diff(path) > 0) and np.all(np.diff(path, 2) < 0)
    tiny = cf.dpo_path(GOLDEN.angle, 1e-3, 1.0, 100)  # beta s stays small: no slowing
    assert tiny[-1] == pytest.approx(1e-3 / 2 * cf.travelled(1.0, 100), rel=1e-2)


def test_sft_trajectory_ends_at_the_chosen_teacher():
    curve = cf.sft_trajectory(GOLDEN.gram, 0.5, 4000, r=1.3)
    assert curve[0] == pytest.approx(0.8)
    assert curve[-1] == pytest.approx(float(cf.sft_limit(0.6)), abs=0.01)
    assert curve[-1] < 0.8, "imitating a weaker teacher ends below the start"


def test_random_error_quadrature_against_known_moments():
    """k has mean a_0 D and deviation R11; u_c . u_r has mean a_c a_r. Low and high dimensions."""
    a = (0.7, 0.6, 0.3)
    for d in (3, 4, 5, 50, 400, 402, 5000):
        mean, sd = cf.over_random_errors(lambda k, N2: k, *a, d)
        assert (mean, sd) == pytest.approx((0.21, float(cf.pull_deviation(*a, d))), rel=1e-9)
        mean, sd = cf.over_random_errors(lambda k, N2: N2, *a, d)
        spread = 2 * np.sqrt((1 - 0.36) * (1 - 0.09) / (d - 1))
        assert (mean, sd) == pytest.approx((2 - 2 * 0.18, spread), rel=1e-9)


def test_chance_to_improve_against_its_own_definition_and_limits():
    rng, d, n = np.random.default_rng(3), 3, 200_000
    a_0, a_c, a_r = 0.5, 0.6, 0.4
    e = unit(rng.standard_normal((3, n, d - 1)))
    s_0, s_c, s_r = np.sqrt(1 - np.array([a_0, a_c, a_r]) ** 2)
    k = a_0 * (a_c - a_r) + s_0 * (e[0] * (s_c * e[1] - s_r * e[2])).sum(1)
    share = (a_c - a_r > a_0 * k).mean()
    assert cf.chance_to_improve(a_0, a_c, a_r, d) == pytest.approx(share, abs=4 * 0.5 / np.sqrt(n))
    assert cf.chance_to_improve(0.0, 0.6, 0.4, 10) == 1
    assert cf.chance_to_improve(0.0, 0.4, 0.6, 10) == 0
    assert cf.chance_to_improve(1.0, 0.6, 0.4, 10) == 0
    assert cf.chance_to_improve(0.5, 0.6, 0.6, 10) == pytest.approx(0.5)
    large = cf.threshold_dimension(0.8, 0.31, 0.30, 0.9)
    assert cf.chance_to_improve(0.8, 0.31, 0.30, round(large)) == pytest.approx(0.9, abs=1e-4)


def test_pairs_for_share_is_where_the_noisy_peak_keeps_that_share():
    a, D, k, N2 = scalars(GOLDEN)
    for share in (0.1, 0.5, 0.9):
        n = cf.pairs_for_share(k, N2, GOLDEN.angle, 1000, share)
        noisy = cf.noisy_contrast_squared(N2, GOLDEN.angle, 1000, n)
        gain = cf.best_cosine(a, D, k, N2) ** 2 - a**2
        assert cf.best_cosine(a, D, k, noisy) ** 2 - a**2 == pytest.approx(share * gain)


# -- properties ----------------------------------------------------------------------------------

cosine_values = st.floats(-0.99, 0.99)
raw_errors = st.lists(st.floats(-1, 1), min_size=9, max_size=9)


@st.composite
def geometries(draw, lowest=-0.99):
    raw = np.array(draw(raw_errors)).reshape(3, 3)
    assume(np.all(np.linalg.norm(raw, axis=1) > 0.1))
    errors = unit(raw) @ unit(raw).T
    np.fill_diagonal(errors, 1)
    return Geometry(
        *(draw(st.floats(lowest, 0.99)), draw(cosine_values), draw(cosine_values)),
        norm=draw(st.floats(0.1, 10)),
        errors=tuple(errors[np.triu_indices(3, 1)]),
    )


@given(geometries(), st.integers(4, 40), st.integers(0, 2**32 - 1))
def test_vectors_reproduce_the_angles_in_any_dimension_and_frame(g, d, seed):
    """The scalars are all that a rotated frame of any dimension keeps, and all that matters."""
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    vectors = g.vectors(d) @ rotation
    assert vectors.shape == (4, d)
    np.testing.assert_allclose(vectors @ vectors.T, g.gram, atol=2e-7)
    truth, u_0, u_c, u_r = vectors
    w = u_c - u_r
    # abs 1e-7: an error direction seen as superfluous (eigenvalue under 1e-8) is left out.
    for direct, scalar in zip((truth @ u_0, truth @ w, u_0 @ w, w @ w), scalars(g), strict=True):
        assert direct == pytest.approx(scalar, abs=5e-7)
    theta = g.norm * u_0 + 0.4 * w
    size = np.linalg.norm(theta)
    assume(size > 1e-2)
    assert cf.cosine(*scalars(g), 0.4, g.norm) == pytest.approx(theta @ truth / size, abs=1e-3)
    assert 0 <= g.angle <= np.pi


@given(geometries(lowest=0.01), st.floats(0.05, 20))
def test_scaling_the_student_scales_the_steps_and_nothing_else(g, r):
    one, many = (cf.best_step(*scalars(g), q) for q in (1.0, r))
    assert many == pytest.approx(r * one)
    one, many = (cf.break_even_step(*scalars(g), q) for q in (1.0, r))
    assert many == pytest.approx(r * one)
    np.testing.assert_allclose(
        cf.cosine(*scalars(g), 0.3, 1.0), cf.cosine(*scalars(g), 0.3 * r, r), rtol=1e-9, atol=1e-12
    )


@given(geometries())
def test_swapping_the_teachers_flips_the_contrast(g):
    c, r, cr = g.errors
    swapped = Geometry(g.student, g.rejected, g.chosen, norm=g.norm, errors=(r, c, cr))
    assert (swapped.gap, swapped.pull) == pytest.approx((-g.gap, -g.pull))
    assert swapped.contrast_squared == pytest.approx(g.contrast_squared)
    forward, back = (cf.overlap(q.student, q.gap, 0.7, q.norm) for q in (g, swapped))
    assert forward + back == pytest.approx(2 * g.norm * g.student)


def test_swapping_the_teachers_mirrors_preference_training_only():
    """Same inputs, same seed: the preference step changes sign; SFT never saw the rejected one."""
    swapped = Geometry(0.8, 0.4, 0.6)
    plan = Plan(dimension=12, trials=50, steps=1, rate=0.5)
    # Swapping also swaps where the two directions lie, so the mirror image is one of expectations.
    forward, back = (simulate(g, plan).overlaps.mean(0)[-1] - 0.8 for g in (GOLDEN, swapped))
    big = Plan(dimension=12, trials=4000, steps=1, rate=0.5)
    moved = [Estimate.of(simulate(g, big).overlaps) for g in (GOLDEN, swapped)]
    error = np.hypot(moved[0].error[-1], moved[1].error[-1])
    assert moved[0].mean[-1] + moved[1].mean[-1] == pytest.approx(1.6, abs=4 * error)
    assert moved[0].mean[-1] - moved[1].mean[-1] > 4 * error
    assert forward != back
    sft = Plan(dimension=12, trials=50, steps=20, rate=0.5, loss="sft")
    others = [simulate(Geometry(0.8, 0.6, a), sft).cosine.mean[-1] for a in (-0.9, 0.4, 0.6, 0.99)]
    trajectories = [cf.sft_trajectory(Geometry(0.8, 0.6, a).gram, 0.5, 9) for a in (-0.9, 0.99)]
    np.testing.assert_array_equal(*trajectories)
    # Where the directions lie in space depends on all of them, hence only equal in distribution.
    assert np.ptp(others) < 0.1


def clear(*differences: float) -> bool:
    """None of these decisive differences is zero but for rounding."""
    return all(abs(x) > 1e-6 for x in differences)


@given(geometries(lowest=0.0))
def test_improvement_is_told_alike_by_all(g):
    """For a_0 >= 0: improves, best_step > 0, best_cosine > a_0 and break_even > 0 are the same."""
    a, D, k, N2 = scalars(g)
    assume(clear(D - a * k, a * N2 - k * D, N2 - k**2, N2, a, a**2 * N2 - D**2))
    better = bool(cf.improves(a, D, k))
    assert (cf.best_step(a, D, k, N2) > 0) == better
    assert (cf.break_even_step(a, D, k, N2) > 0) == better
    assert (cf.best_cosine(a, D, k, N2) > a) == better
    assert cf.break_even_step(a, D, k, N2) >= cf.best_step(a, D, k, N2)
    assert bool(cf.cosine(a, D, k, N2, 1e-5) > a + 1e-14) == better or abs(D - a * k) < 1e-4


@given(geometries())
def test_best_cosine_is_the_highest_on_the_line(g):
    """Also for a student worse than chance (a_0 < 0), whose cosine may fall before it rises."""
    a, D, k, N2 = scalars(g)
    assume(clear(D - a * k, a * N2 - k * D, N2 - k**2, N2))
    curve = cf.cosine(a, D, k, N2, np.concatenate([[0], np.geomspace(1e-6, 1e8, 4001)]))
    top = cf.best_cosine(a, D, k, N2)
    assert curve.max() <= top + 1e-7
    assert curve.max() >= top - 1e-3


@given(geometries())
def test_far_along_the_line_lies_the_limit(g):
    assume(g.contrast_squared > 1e-4)
    far = cf.cosine(*scalars(g), 1e9, g.norm)
    assert far == pytest.approx(cf.limit_cosine(g.gap, g.contrast_squared), abs=1e-5)


def test_all_broadcast():
    a, D, N2 = np.linspace(0.1, 0.9, 3)[:, None], np.linspace(0.05, 0.4, 4), 1.5
    k = a * D
    for function in (cf.best_step, cf.best_cosine, cf.break_even_step):
        table = function(a, D, k, N2)
        assert table.shape == (3, 4)
        assert table[1, 2] == function(a[1, 0], D[2], k[1, 2], N2)
    assert cf.cosine(a, D, k, N2, 0.2).shape == (3, 4)
    assert cf.improves(a, D, k).all()
    assert cf.label_gain(np.ones((2, 3))).shape == (2, 3)
    assert cf.dpo_speed(1.0, np.ones((2, 3))).shape == (2, 3)
    assert cf.overlap_variance(D, 1.0, N2, 0.3, np.full((2, 1), 10)).shape == (2, 4)
    assert cf.noisy_contrast_squared(N2, 1.3, 100, [10, 100]).shape == (2,)
    assert np.shape(cf.best_cosine(0.8, 0.2, 0.16, 1.52)) == ()


# -- edge cases ----------------------------------------------------------------------------------


def test_identical_teachers_teach_nothing():
    g = Geometry(0.8, 0.6, 0.6, errors=(0, 0, 1))
    assert (g.gap, g.pull, g.contrast_squared, g.angle) == (0, 0, 0, 0)
    assert cf.best_step(*scalars(g)) == cf.break_even_step(*scalars(g)) == 0
    assert cf.best_cosine(*scalars(g)) == 0.8
    assert np.isnan(cf.limit_cosine(g.gap, g.contrast_squared))
    assert cf.overlap_variance(0.0, 1.2, 0.0, 0.3, 10) == 0
    for loss in ("preference", "dpo"):
        plan = Plan(dimension=20, trials=5, steps=30, rate=1.0, loss=loss)
        assert simulate(g, plan).cosines == pytest.approx(np.full((5, 2), 0.8))
    assert np.isfinite(cf.dpo_path(g.angle, 5.0, 0.1, 3)).all()


def test_opposite_teachers_disagree_everywhere():
    g = Geometry(0.5, 0.6, -0.6, errors=(0, 0, -1))
    assert g.contrast_squared == pytest.approx(4)
    assert cf.disagreement(g.angle) == pytest.approx(1)
    assert cf.limit_cosine(g.gap, g.contrast_squared) == pytest.approx(0.6)
    variance = cf.overlap_variance(1.2, 0.0, 4.0, 0.5, 7)  # sums of |z| with E = D / sqrt(2 pi)
    assert variance == pytest.approx(0.25 / 7 * (2 * np.pi - 1.2**2))


@pytest.mark.parametrize("student", [1.0, 0.0, -0.4, -1.0])
def test_extreme_students(student):
    g = Geometry(student, 0.6, 0.4)
    better = student < 1
    assert cf.improves(student, g.gap, g.pull) == (abs(student) < 1)
    assert (cf.best_cosine(*scalars(g)) > student) == better
    plan = Plan(dimension=6, trials=3, steps=2, rate=0.1)
    assert simulate(g, plan).cosines[:, 0] == pytest.approx(student)


def test_a_student_worse_than_chance_may_fall_before_it_rises():
    a, D, k, N2 = -0.5, 0.1, -0.9, 1.2
    assert not cf.improves(a, D, k)
    assert cf.cosine(a, D, k, N2, 0.1) < a
    assert cf.best_step(a, D, k, N2) == np.inf
    assert cf.best_cosine(a, D, k, N2) == pytest.approx(0.1 / np.sqrt(1.2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": 1.01}, "cosine of the student is 1.01"),
        ({"chosen": -1.2}, "cosine of the chosen"),
        ({"rejected": float("nan")}, "cosine of the rejected is nan"),
        ({"norm": 0.0}, "must be positive"),
        ({"norm": -1.0}, "must be positive"),
        ({"norm": float("inf")}, "must be positive"),
        ({"errors": (0.9, 0.9, -0.9)}, "semi-definite"),
        ({"errors": (0, 1.1, 0)}, "1.1 is no correlation"),
        ({"errors": (0, 0, float("nan"))}, "nan is no correlation"),
    ],
)
def test_impossible_geometries_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Geometry(**{"student": 0.8, "chosen": 0.6, "rejected": 0.4, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 3}, "at least 4"),
        ({"dimension": 0}, "dimension is 0"),
        ({"trials": 0}, "trials is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"rate": 0.0}, "rate is 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"beta": -1.0}, "beta is -1"),
        ({"loss": "ppo"}, "no loss 'ppo'"),
        ({"inputs": "cauchy"}, "no inputs 'cauchy'"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"inputs": "heavy", "freedom": 2.0}, "freedom is 2"),
        ({"inputs": "elliptical", "freedom": float("nan")}, "freedom is nan"),
        ({"inputs": "correlated", "correlation": 1.0}, "correlation is 1"),
        ({"random_errors": True, "dimension": 3}, "random error directions"),
        ({"records": (0, 11)}, "records must lie within"),
        ({"records": (-1, 5)}, "records must lie within"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        usual = {"dimension": 10, "trials": 2, "steps": 10, "rate": 0.1}
        simulate(GOLDEN, Plan(**{**usual, **changes}))


def test_smallest_dimension_is_enough():
    assert [g.needed_dimension() for g in (GOLDEN, Geometry(1.0, 0.6, 0.4), Geometry(1, 1, 1))] == [
        4,
        3,
        1,
    ]
    flat = Geometry(0.8, 0.6, 0.4, errors=(1, 1, 1))
    assert flat.needed_dimension() == 2
    np.testing.assert_allclose(flat.vectors(2) @ flat.vectors(2).T, flat.gram, atol=1e-12)
    plan = Plan(dimension=2, trials=200, steps=5, rate=0.1)
    for inputs in simulation.INPUTS:
        simulate(flat, Plan(**{**vars(plan), "inputs": inputs}))
    with pytest.raises(UserError, match="need at least 2"):
        flat.vectors(1)


# -- the simulator -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", simulation.LOSSES)
def test_result_depends_on_the_seed_alone(loss, monkeypatch):
    monkeypatch.setattr(simulation, "CHUNK_BYTES", 8 * 30 * 16)  # several chunks, several splits
    plan = Plan(dimension=30, trials=64, steps=6, rate=0.2, batch=3, loss=loss, seed=5)
    once = simulate(GOLDEN, plan)
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        again = simulate(GOLDEN, plan)
        np.testing.assert_array_equal(once.norms_squared, again.norms_squared)
    other = simulate(GOLDEN, Plan(**{**vars(plan), "seed": 6}))
    assert not np.any(once.cosines[:, 1] == other.cosines[:, 1])
    assert len(np.unique(once.cosines[:, 1])) == 64, "trials are not copies of one another"


@pytest.mark.parametrize("loss", simulation.LOSSES)
def test_one_step_is_the_sum_over_the_pairs(loss, monkeypatch):
    """Against a plain loop over the very pairs drawn; agreeing pairs included, which add zero."""
    plan = Plan(dimension=7, trials=5, steps=1, rate=0.3, batch=4, loss=loss, inputs="correlated")
    rng = np.random.default_rng(0)
    theta, start = rng.standard_normal((2, 5, 7))
    chosen, rejected = rng.standard_normal((2, 5, 7))
    drawn = []

    def remember(*args):
        drawn.append(draw_inputs(*args))
        return drawn[-1]

    monkeypatch.setattr(simulation, "draw_inputs", remember)
    got = simulation._summed_change(plan, rng, 4, theta, start, chosen, rejected)
    for t in range(5):
        expected = np.zeros(7)
        for x in drawn[0][t]:
            y_c, y_r = np.sign(x @ chosen[t]), np.sign(x @ rejected[t])
            if loss == "preference":
                weight = (y_c - y_r) / 2
            elif loss == "sft":
                weight = y_c / (1 + np.exp(y_c * (x @ theta[t])))
            else:
                margin = plan.beta * y_c * (x @ (theta[t] - start[t]))
                weight = (y_c != y_r) * plan.beta * y_c / (1 + np.exp(margin))
            expected += weight * x
        np.testing.assert_allclose(got[t], expected, atol=1e-12)


def test_undrawn_coordinates_change_nothing_in_distribution(monkeypatch):
    """Skipping what agreeing pairs would have drawn: same overlaps and norms as drawing all."""
    plan = Plan(dimension=9, trials=20_000, steps=3, rate=0.5)
    lazy = simulate(GOLDEN, plan)
    monkeypatch.setattr(simulation, "draw_inputs", lambda r, p, shape: r.standard_normal(shape))
    full = simulate(GOLDEN, Plan(**{**vars(plan), "inputs": "correlated", "seed": 1}))
    for name in ("overlaps", "norms_squared", "cosines"):
        # Rounded: trials that never saw a useful pair stay where they were, up to rounding.
        values = [getattr(result, name)[:, -1].round(9) for result in (lazy, full)]
        assert stats.ks_2samp(*values).pvalue > 1e-3


def test_full_batch_equals_one_pair_a_step_for_the_preference_loss():
    """24 pairs as one step or as 24: the preference gradient does not depend on theta."""
    one = Plan(dimension=10, trials=20_000, steps=1, batch=24, rate=2.4)
    many = Plan(dimension=10, trials=20_000, steps=24, batch=1, rate=0.1, seed=1)
    results = [simulate(GOLDEN, plan) for plan in (one, many)]
    for name in ("overlaps", "norms_squared", "cosines"):
        values = [getattr(result, name)[:, -1] for result in results]
        assert stats.ks_2samp(*values).pvalue > 1e-3


def test_records_are_measured_when_asked():
    plan = Plan(dimension=10, trials=40, steps=9, rate=0.1, records=(9, 0, 4, 4))
    result = simulate(Geometry(0.8, 0.6, 0.4, norm=2.0), plan)
    assert result.steps.tolist() == [0, 4, 9]
    assert result.cosines.shape == result.accuracies.shape == (40, 3)
    assert result.cosines[:, 0] == pytest.approx(0.8)
    assert result.norms_squared[:, 0] == pytest.approx(4)
    assert result.overlaps[:, 0] == pytest.approx(1.6)
    np.testing.assert_allclose(result.accuracies, cf.accuracy(result.cosines))
    np.testing.assert_allclose(result.cosines, result.overlaps / np.sqrt(result.norms_squared))
    last = simulate(Geometry(0.8, 0.6, 0.4, norm=2.0), Plan(**{**vars(plan), "records": None}))
    assert last.steps.tolist() == [0, 9]
    np.testing.assert_array_equal(last.cosines, result.cosines[:, [0, 2]])  # no draws spent
    estimate = result.cosine
    assert estimate.mean == pytest.approx(result.cosines.mean(0))
    assert estimate.error == pytest.approx(result.cosines.std(0, ddof=1) / np.sqrt(40))


def test_a_hundred_thousand_dimensions_fit_in_two_gigabytes():
    plan = Plan(dimension=100_000, trials=100, steps=3, rate=0.01, batch=2)
    tracemalloc.start()
    try:
        result = simulate(GOLDEN, plan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**30 / 10, f"{peak / 2**20:.0f} MB"
    assert np.isfinite(result.cosines).all()


@pytest.mark.parametrize("inputs", simulation.INPUTS)
def test_inputs_have_unit_variance_and_the_stated_correlations(inputs):
    plan = Plan(dimension=6, trials=4, steps=1, rate=1.0, inputs=inputs, freedom=9.0)
    x = draw_inputs(np.random.default_rng(0), plan, (4, 100_000, 6)).reshape(-1, 6)
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    expected = 0.5**distance if inputs == "correlated" else np.eye(6)
    np.testing.assert_allclose(x.mean(0), 0, atol=5 / np.sqrt(len(x)))
    np.testing.assert_allclose(x.T @ x / len(x), expected, atol=10 / np.sqrt(len(x)))
    kurtosis = {"normal": 3, "correlated": 3, "heavy": 3 + 6 / 5, "elliptical": 3 + 6 / 5}[inputs]
    assert (x**4).mean() == pytest.approx(kurtosis, abs=0.15)
    # Elliptical coordinates share their scale, independent ones do not.
    together = (x[:, 0] ** 2 * x[:, 3] ** 2).mean()
    shared = {"elliptical": 1 + 2 / 5, "correlated": 1 + 2 * 0.5**6}.get(inputs, 1)
    assert together == pytest.approx(shared, abs=0.05)


@pytest.mark.parametrize("inputs", simulation.INPUTS)
def test_accuracy_is_right_for_all_inputs(inputs):
    """At the start, when only the geometry counts; correlated and heavy inputs count agreements."""
    plan = Plan(dimension=60, trials=400, steps=1, rate=0.1, inputs=inputs, correlation=0.0)
    result = simulate(GOLDEN, plan)
    assert result.cosines[:, 0] == pytest.approx(0.8)
    error = np.nan_to_num(result.accuracy.error[0])
    assert result.accuracy.mean[0] == pytest.approx(float(cf.accuracy(0.8)), abs=4 * error + 0.006)


def test_random_frames_have_the_distribution_of_drawn_directions():
    """Bartlett's short cut against normal vectors of the full dimension."""
    d, n = 7, 40_000
    rng = np.random.default_rng(4)
    frames = simulation._random_error_frames(GOLDEN, d, n, rng)
    gram = frames @ frames.transpose(0, 2, 1)
    np.testing.assert_allclose(np.diagonal(gram, axis1=1, axis2=2), 1, atol=1e-12)
    np.testing.assert_allclose(gram[:, 0, 1:], np.tile([0.8, 0.6, 0.4], (n, 1)), atol=1e-12)
    e = unit(rng.standard_normal((3, n, d - 1)))
    sines = np.sqrt(1 - GOLDEN.cosines**2)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        product = GOLDEN.cosines[i] * GOLDEN.cosines[j]
        direct = product + sines[i] * sines[j] * (e[i] * e[j]).sum(1)
        assert stats.ks_2samp(direct, gram[:, i + 1, j + 1]).pvalue > 1e-3
    triple = np.einsum("ti,ti->t", np.cross(frames[:, 1, 1:], frames[:, 2, 1:]), frames[:, 3, 1:])
    assert np.all(triple[::2] > -1e-12)  # a frame, up to rotation; every second is a mirror image
    np.testing.assert_allclose(triple[1::2], -triple[::2], atol=1e-12)


def test_mirrored_draws_have_the_same_mean_and_an_honest_smaller_error():
    """Every second student has the error of the one before it turned round: less luck, no bias."""
    geometry, steps = GOLDEN, 4
    plan = Plan(
        dimension=30, trials=400, steps=steps, rate=0.1, batch=400, random_errors=True, seed=3
    )
    result = simulate(geometry, plan)
    single = Estimate.of(result.cosines)
    assert (result.cosine.mean == single.mean).all()
    assert result.cosine.error[-1] < 0.5 * single.error[-1]
    again = [simulate(geometry, replace(plan, trials=40, seed=seed)) for seed in range(100, 140)]
    means = np.array([one.cosine.mean[-1] for one in again])
    claimed = np.mean([one.cosine.error[-1] for one in again])
    assert means.std(ddof=1) == pytest.approx(claimed, rel=0.4), "what 40 repetitions scatter"
    assert (
        abs(means.mean() - result.cosine.mean[-1])
        < 4 * claimed / np.sqrt(40) + 4 * (result.cosine.error[-1])
    )


def test_an_odd_number_of_draws_counts_them_all():
    plan = Plan(dimension=30, trials=5, steps=1, rate=0.1, random_errors=True)
    result = simulate(GOLDEN, plan)
    assert result.cosines.shape[0] == 5 and np.isfinite(result.cosine.error).all()
    one = simulate(GOLDEN, replace(plan, trials=1))
    assert np.isnan(one.cosine.error).all() and np.isfinite(one.cosine.mean).all()
