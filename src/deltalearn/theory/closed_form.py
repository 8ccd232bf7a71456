"""Population results for preference, SFT and DPO training, as pure functions of scalars or arrays.

Names follow docs/theory.md, where each numbered result is derived: a_0, a_c, a_r cosines to the
truth; D = a_c - a_r the gap; k = u_0 . w the student's component along w = u_c - u_r; N2 = |w|^2;
r the student's norm; s the distance travelled along w. All arguments broadcast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, erf, expit, ndtri, roots_chebyt, roots_gegenbauer

SIGN_GAIN = float(np.sqrt(2 / np.pi))  # E[z sign(z)], z ~ N(0, 1)
_LARGEST = 10.0  # the normal density beyond is below 1e-22 and left out
_FADED = 40.0  # s(-_FADED) is below 1e-17 and left out
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # on [0, 1]


def _array(value: ArrayLike) -> np.ndarray:
    return np.asarray(value, dtype=np.float64)


def accuracy(cosine: ArrayLike) -> np.ndarray:
    """Share of inputs on which a classifier agrees with the truth: 1 - arccos(a) / pi. (R1)"""
    return 1 - np.arccos(np.clip(_array(cosine), -1, 1)) / np.pi


def label_gain(temperature: ArrayLike = 0.0) -> np.ndarray:
    """Compute kappa with E[y x] = kappa u for labels y = +-1 drawn by a teacher u. (R2)

    Hard labels: sqrt(2 / pi). Sampled with P(y = 1 | x) = s(u.x / temperature):
    E[z tanh(z / (2 temperature))] = sqrt(2 / pi) - 2 E[|z| s(-|z| / temperature)], by quadrature.

    Args:
        temperature: Of the labels; 0 for hard ones.

    Returns:
        kappa, of the shape of `temperature`.
    """
    temperature = _array(temperature)[..., None]
    with np.errstate(divide="ignore"):
        exponent = np.minimum(_LARGEST / temperature, _FADED)  # |z| / temperature at its largest
    top = np.minimum(_LARGEST, _FADED * temperature)
    z = top * _NODES
    lost = z * np.exp(-(z**2) / 2) * expit(-exponent * _NODES)
    return SIGN_GAIN * (1 - 2 * (top * _WEIGHTS * lost).sum(-1))


# -- Preference training: a straight line -----------------------------------------------------


def travelled(rate: ArrayLike, steps: ArrayLike, kappa: ArrayLike = SIGN_GAIN) -> np.ndarray:
    """s after `steps` of gradient descent at `rate`: rate x steps x kappa / 2. (R4)

    The gradient of the preference loss is -(kappa / 2) w at every theta. (R3)
    """
    return _array(rate) * _array(steps) * _array(kappa) / 2


def overlap(a_0: ArrayLike, D: ArrayLike, s: ArrayLike, r: ArrayLike = 1.0) -> np.ndarray:
    """theta* . theta after travelling s: r a_0 + s D, rising as soon as D > 0. (R5)"""
    return _array(r) * a_0 + _array(s) * D


def norm_squared(k: ArrayLike, N2: ArrayLike, s: ArrayLike, r: ArrayLike = 1.0) -> np.ndarray:
    """|theta|^2 after travelling s: r^2 + 2 s r k + s^2 N^2. (R5)"""
    r, s = _array(r), _array(s)
    return r**2 + 2 * s * r * k + s**2 * N2


def cosine(
    a_0: ArrayLike, D: ArrayLike, k: ArrayLike, N2: ArrayLike, s: ArrayLike, r: ArrayLike = 1.0
) -> np.ndarray:
    """cos(theta, theta*) after travelling s along w. (R6)"""
    return overlap(a_0, D, s, r) / np.sqrt(norm_squared(k, N2, s, r))


def improves(a_0: ArrayLike, D: ArrayLike, k: ArrayLike) -> np.ndarray:
    """True where small steps raise the cosine: exactly if D > a_0 k. (R7)"""
    return _array(D) > _array(a_0) * k


def best_step(
    a_0: ArrayLike, D: ArrayLike, k: ArrayLike, N2: ArrayLike, r: ArrayLike = 1.0
) -> np.ndarray:
    """s at which the cosine peaks: r (D - a_0 k) / (a_0 N^2 - k D); 0 or inf at the ends. (R8)

    Zero if no step helps; infinite if the cosine rises for ever (a_0 N^2 <= k D), or, possible
    only for a_0 < 0, falls first and ends above a_0.
    """
    a_0, D, k, N2 = map(_array, (a_0, D, k, N2))
    above, below = D - a_0 * k, a_0 * N2 - k * D
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = np.where(below > 0, _array(r) * above / below, np.inf)
        late = (below < 0) & (a_0 * np.sqrt(N2) < D)
    return np.where(above > 0, peak, np.where(late, np.inf, 0.0))[()]


def best_cosine(a_0: ArrayLike, D: ArrayLike, k: ArrayLike, N2: ArrayLike) -> np.ndarray:
    """Highest cosine on the line s >= 0, whatever the student's norm. (R8)

    sqrt((a_0^2 N^2 - 2 a_0 D k + D^2) / (N^2 - k^2)) at an inner peak; a_0 if no step helps;
    D / N if the best step is infinite.
    """
    a_0, D, k, N2 = np.broadcast_arrays(*map(_array, (a_0, D, k, N2)))
    step = best_step(a_0, D, k, N2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = np.sqrt((a_0**2 * N2 - 2 * a_0 * D * k + D**2) / (N2 - k**2))
    return np.where(step == 0, a_0, np.where(np.isinf(step), limit_cosine(D, N2), inner))[()]


def break_even_step(
    a_0: ArrayLike, D: ArrayLike, k: ArrayLike, N2: ArrayLike, r: ArrayLike = 1.0
) -> np.ndarray:
    """Largest s no worse than the start: 2 r a_0 (D - a_0 k) / (a_0^2 N^2 - D^2). (R9)

    Zero if no step helps; infinite if the limit D / N is no worse than a_0. For a_0 > 0.
    """
    a_0, D, k, N2 = map(_array, (a_0, D, k, N2))
    above, below = D - a_0 * k, a_0**2 * N2 - D**2
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = np.where(below > 0, 2 * _array(r) * a_0 * above / below, np.inf)
    return np.where(above > 0, edge, 0.0)


def limit_cosine(D: ArrayLike, N2: ArrayLike) -> np.ndarray:
    """cos as s grows without end: D / N; nan if the teachers are the same. (R10)"""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _array(D) / np.sqrt(_array(N2))


# -- Random error directions: how many dimensions a gap needs ---------------------------------


def _sines(*cosines: ArrayLike) -> list[np.ndarray]:
    return [np.sqrt(1 - _array(c) ** 2) for c in cosines]


def pull_deviation(a_0: ArrayLike, a_c: ArrayLike, a_r: ArrayLike, d: ArrayLike) -> np.ndarray:
    """Standard deviation of k over independent uniform error directions in d dimensions. (R11)

    k = a_0 D + s_0 e_0 . (s_c e_c - s_r e_r) has mean a_0 D and variance
    (1 - a_0^2)(2 - a_c^2 - a_r^2) / (d - 1), exactly.
    """
    s_0, s_c, s_r = _sines(a_0, a_c, a_r)
    return s_0 * np.sqrt((s_c**2 + s_r**2) / (_array(d) - 1))


def chance_to_improve(a_0: float, a_c: float, a_r: float, d: int) -> float:
    """P(D > a_0 k) over independent uniform error directions in d >= 3 dimensions, exact. (R12)

    Large d: Phi(D s_0 sqrt(d - 1) / (a_0 sqrt(s_c^2 + s_r^2))).
    """
    D = a_c - a_r
    s_0, s_c, s_r = _sines(a_0, a_c, a_r)
    if a_0 == 0 or s_0 == 0:
        return float(a_0 * (a_0 * D) < D)
    inner, weights = _sphere_rule(d - 1)
    error = np.sqrt(np.clip(s_c**2 + s_r**2 - 2 * s_c * s_r * inner, 0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = D * s_0 / (abs(a_0) * error)  # of e_0's component along the teachers' errors
    return float((weights * _sphere_cdf(bound, d - 1)).sum())


def threshold_dimension(a_0: float, a_c: float, a_r: float, confidence: float = 0.95) -> float:
    """Dimension from which small steps improve with this probability, for D > 0, 0 < a_0 < 1. (R12)

    1 + (z a_0 / (D s_0))^2 (s_c^2 + s_r^2) with z the normal quantile of `confidence` >= 1/2. NaN
    for other teachers or students.
    """
    if a_c <= a_r or not 0 < a_0 < 1:
        return np.nan
    s_0, s_c, s_r = _sines(a_0, a_c, a_r)
    quantile = ndtri(confidence)
    return float(1 + (quantile * a_0 / ((a_c - a_r) * s_0)) ** 2 * (s_c**2 + s_r**2))


def over_random_errors(function, a_0: float, a_c: float, a_r: float, d: int) -> tuple[float, float]:
    """Mean and standard deviation of function(k, N2) over uniform error directions. (R13)

    Exact two-dimensional quadrature: given c = e_c . e_r, k depends on one component of e_0 only.
    """
    s_0, s_c, s_r = _sines(a_0, a_c, a_r)
    inner, weights = _sphere_rule(d - 1)
    c, t = inner[:, None], inner[None, :]
    error = np.sqrt(np.clip(s_c**2 + s_r**2 - 2 * s_c * s_r * c, 0, None))
    k = a_0 * (a_c - a_r) + s_0 * error * t
    N2 = 2 - 2 * (a_c * a_r + s_c * s_r * c) + 0 * t
    values = function(k, N2)
    joint = weights[:, None] * weights[None, :]
    mean = float((joint * values).sum())
    return mean, float(np.sqrt(max(0.0, (joint * (values - mean) ** 2).sum())))


def _sphere_rule(n: int, nodes: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature for one coordinate of a uniform point on the unit sphere of R^n, n >= 2."""
    if n > 400:  # normal up to O(1 / n^2) once the variance is right
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        return points / np.sqrt(n), weights / weights.sum()
    points, weights = roots_gegenbauer(nodes, (n - 2) / 2) if n > 2 else roots_chebyt(nodes)
    return points, weights / weights.sum()


def _sphere_cdf(t: ArrayLike, n: int) -> np.ndarray:
    inside = np.clip(_array(t), -1, 1)
    return 0.5 + 0.5 * np.sign(inside) * betainc(0.5, (n - 1) / 2, inside**2)


# -- Imitation (SFT on the chosen labels) ------------------------------------------------------


def shrink(rho: ArrayLike) -> np.ndarray:
    """h(rho) = E[z tanh(rho z / 2)], z ~ N(0, 1): how strongly a classifier of norm rho pulls
    itself back under the logistic loss. h(1 / temperature) = label_gain(temperature). (R14)"""
    with np.errstate(divide="ignore"):
        return label_gain(1 / _array(rho))


def sft_trajectory(
    gram: np.ndarray, rate: float, steps: int, r: float = 1.0, kappa: float = SIGN_GAIN
) -> np.ndarray:
    """Cosine to the truth after 0..steps steps of population SFT, shape (steps + 1,). (R15)

    gram: inner products of (theta*, u_0, u_c, ...). theta_t = alpha u_0 + beta u_c exactly, with
    theta' = theta + rate (kappa / 2 u_c - h(|theta|) / 2 theta / |theta|).
    """
    a_0, a_c, rho = gram[0, 1], gram[0, 2], gram[1, 2]
    alpha, beta = float(r), 0.0
    result = np.empty(steps + 1)
    for t in range(steps + 1):
        size = np.sqrt(alpha**2 + beta**2 + 2 * alpha * beta * rho)
        result[t] = (alpha * a_0 + beta * a_c) / size
        keep = 1 - rate * float(shrink(size)) / (2 * size)
        alpha, beta = alpha * keep, beta * keep + rate * kappa / 2
    return result


def sft_improves(a_0: ArrayLike, a_c: ArrayLike, rho: ArrayLike) -> np.ndarray:
    """True where small SFT steps raise the cosine: a_c > a_0 rho, with rho = u_0 . u_c. (R16)"""
    return _array(a_c) > _array(a_0) * rho


def sft_limit(a_c: ArrayLike) -> np.ndarray:
    """Where SFT ends: the direction of the chosen teacher, a_c. (R17)"""
    return _array(a_c)


# -- DPO: the same line, at a falling speed ----------------------------------------------------


def dpo_speed(phi: float, b: ArrayLike) -> np.ndarray:
    """g(b) = E[1{disagree} |w.x| s(-b |w.x|)] / N^2 for teachers at angle phi. (R18)

    With z = w.x / N normal, they disagree with probability erf(|z| tan(phi / 2) / sqrt(2)) given
    z; hence g(b) = sqrt(2 / pi) / N x integral over z > 0 of that z exp(-z^2 / 2) s(-b N z).
    g(0) = 1 / (2 sqrt(2 pi)) at every angle.
    """
    phi = max(phi, 1e-6)  # the limit for teachers that agree
    b, N = _array(b)[..., None], 2 * np.sin(phi / 2)
    with np.errstate(divide="ignore"):
        top = np.minimum(_LARGEST, _FADED / (b * N))
    t = np.sqrt(top) * _NODES  # z = t^2 crowds the nodes near 0
    z = t**2
    integrand = z * np.exp(-(z**2) / 2) * expit(-b * N * z) * erf(z * np.tan(phi / 2) / np.sqrt(2))
    return SIGN_GAIN / N * (np.sqrt(top) * _WEIGHTS * 2 * t * integrand).sum(-1)


def dpo_path(phi: float, beta: float, rate: float, steps: int) -> np.ndarray:
    """s after 0..steps steps of population DPO, shape (steps + 1,). (R19)

    theta_t = theta_0 + s_t w as for the linear preference loss, with s' = s + rate beta g(beta s):
    beta / 2 times its speed at the start, and ever slower (the pairs become separable).
    """
    path = np.zeros(steps + 1)
    for t in range(steps):
        path[t + 1] = path[t] + rate * beta * float(dpo_speed(phi, beta * path[t]))
    return path


# -- Finite samples ----------------------------------------------------------------------------


def disagreement(phi: ArrayLike) -> np.ndarray:
    """Share of inputs on which the teachers differ: phi / pi; only these pairs teach. (R20)"""
    return _array(phi) / np.pi


def noisy_contrast_squared(N2: ArrayLike, phi: ArrayLike, d: ArrayLike, n: ArrayLike) -> np.ndarray:
    """N_n^2: what replaces N^2 in |theta|^2 after training on n pairs. (R21)

    N^2 (1 - 1/n) + 2 d phi / n. The noise of the summed gradient has no preferred direction, so it
    lengthens theta and leaves the overlap alone; the steps' number and order play no part.
    """
    N2, n = _array(N2), _array(n)
    return N2 + (2 * _array(d) * phi - N2) / n


def overlap_variance(
    D: ArrayLike, total: ArrayLike, N2: ArrayLike, s: ArrayLike, n: ArrayLike
) -> np.ndarray:
    """Variance of theta* . theta after travelling s on n pairs; total = a_c + a_r. (R22)

    s^2 / n (2 phi + 2 sin(phi) (D^2 / N^2 - total^2 / (4 - N^2)) - D^2).
    """
    D, total, N2 = map(_array, (D, total, N2))
    phi = 2 * np.arcsin(np.sqrt(N2) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.where(N2 > 0, D**2 / N2, 0) - np.where(N2 < 4, total**2 / (4 - N2), 0)
    return _array(s) ** 2 / n * (2 * phi + 2 * np.sin(phi) * shape - D**2)


def pairs_for_share(
    k: ArrayLike, N2: ArrayLike, phi: ArrayLike, d: ArrayLike, share: ArrayLike = 0.5
) -> np.ndarray:
    """Pairs at which the best squared cosine keeps `share` of its population gain. (R23)

    cos^2(s*) - a_0^2 = (D - a_0 k)^2 / (N_n^2 - k^2), hence
    n = share / (1 - share) (2 d phi - N^2) / (N^2 - k^2).
    """
    share, N2 = _array(share), _array(N2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return share / (1 - share) * (2 * _array(d) * phi - N2) / (N2 - _array(k) ** 2)
