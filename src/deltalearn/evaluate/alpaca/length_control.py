"""The length-controlled win rate (Dubois et al., arXiv 2404.04475; alpaca_eval 0.6.6).

A regression says how much of each preference is due to the responses' lengths; the win rate is then
predicted for responses as long as the reference's. Features of instruction i: tanh(d_i / s), with
d_i the reference's length minus the model's in characters and s its deviation (ddof 1) over the
model's instructions; the instruction's difficulty; a constant for the model. No intercept.

Two variants, never the same name: "length-controlled" as published, which needs two side files and
in which the rows of two gamed baselines (together of weight 0.2) hold the length effect in check;
"length-controlled, minimal" has neither difficulty nor gamed rows and can be computed anywhere. The
minimal one is no guard against responses made to game it.

The published fit has an L1 penalty (liblinear), its strength chosen by cross-validation;
scikit-learn's own, so that numbers agree with the package's. Its error is a jackknife, which refits
by maximum likelihood (`pseudo_scores`). alpaca_eval's `lc_standard_error` is the standard error of
the *fitted* preferences, 0 in the minimal variant: it says nothing about how far the score would
move with other instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.length_data import LengthControlData
from deltalearn.judge.verdicts import Annotation

FULL = "length-controlled"
MINIMAL = "length-controlled, minimal"
GAMED_WEIGHT = 0.2 / 2  # of each row of the two gamed baselines
FOLDS = 5
SEED = 123
RIDGE = 1e-6  # keeps coefficients finite where the classes can be separated
STEPS = 100
HALVINGS = 40  # of a step
CLOSE = 1e-8  # a step that changes no coefficient by more is the last
ROUNDING = 1e-13  # of a loss
CHUNK = 200  # refits at a time, to bound memory


@dataclass(frozen=True)
class ScoredPairs:
    """One model's scored comparisons.

    Attributes:
        score: (n,) the model's share of each preference, in [0, 1].
        delta: (n,) characters of the reference's response minus the model's.
        position: (n,) place of each instruction in the set.
    """

    score: np.ndarray
    delta: np.ndarray
    position: np.ndarray

    @staticmethod
    def of(
        scores: Sequence[float], outputs: Sequence[str], references: Sequence[str]
    ) -> ScoredPairs:
        """From the columns score, output and gold of an items table, which is the whole set."""
        delta = [float(len(r) - len(o)) for o, r in zip(outputs, references, strict=True)]
        score = np.asarray(scores, dtype=np.float64)
        return ScoredPairs(score, np.array(delta), np.arange(len(score)))

    @staticmethod
    def from_annotations(annotations: Sequence[Annotation]) -> ScoredPairs:
        """The scored ones of a whole set, given in the order of its reference outputs."""
        scored = [(at, a) for at, a in enumerate(annotations) if a.scored]
        pairs = [a.pair for _, a in scored]
        plain = ScoredPairs.of(
            [a.score for _, a in scored], [p.output_2 for p in pairs], [p.output_1 for p in pairs]
        )
        return replace(plain, position=np.array([at for at, _ in scored], dtype=int))


@dataclass(frozen=True)
class LengthControl:
    """A length-controlled win rate, in [0, 1].

    Attributes:
        name: FULL or MINIMAL.
        length: Coefficient of the length feature; so constant, and (FULL) difficulty.
        sd: Deviation of the length difference, in characters.
    """

    name: str
    win_rate: float
    length: float
    constant: float
    difficulty: float | None
    sd: float
    notes: tuple[str, ...] = ()


def length_controlled(judged: ScoredPairs, sides: LengthControlData | None = None) -> LengthControl:
    """The published rate: FULL if there are side files, of the same set, MINIMAL if not.

    Raises:
        UserError: If nothing is scored, or scikit-learn is missing.
    """
    if not len(judged.score):
        raise UserError("no comparison has a preference; there is no win rate")
    design, target, weight = regression(judged, sides)
    beta = fit_published(design, target, weight)
    if sides is None:
        rate, difficulty = float(expit(beta[-1])), None
    else:
        hard = sides.difficulty[judged.position]
        rate, difficulty = float(expit(beta[1] * hard + beta[2]).mean()), float(beta[1])
    sd = float(deviation(judged.delta, np.ones(len(judged.score))))
    notes = list(sides.notes) if sides else []
    if sd == 0:
        notes.append("all answers differ from the reference's by the same length: no control")
    raw = float(judged.score.mean())
    # As alpaca_eval would warn: more than 10 points and a quarter of the way away.
    if not min(raw * 0.75, raw - 0.10) <= rate <= max(raw + (1 - raw) / 4, raw + 0.10):
        notes.append(
            f"length control moves the win rate from {raw:.1%} to {rate:.1%}: answers this short "
            "or long are beyond what the regression can tell"
        )
    name = MINIMAL if sides is None else FULL
    return LengthControl(name, rate, float(beta[0]), float(beta[-1]), difficulty, sd, tuple(notes))


def pseudo_scores(judged: ScoredPairs, published: float | None = None) -> np.ndarray:
    """A length-controlled rate as a mean over items, so that it is compared like any other score.

    The rate comes from a regression over all items, so no item has a score of its own. Its
    jackknife pseudo-value takes that place: n * rate - (n - 1) * rate without the item, of the
    minimal rate by maximum likelihood. Their s / sqrt(n) is the standard error as a bootstrap that
    refits gives it (Efron and Tibshirani 1993, chapter 11), and so pairing, clusters, training
    seeds and averages work unchanged.

    Args:
        judged: n scored comparisons.
        published: The mean to move the values to, by default their own rate. For a rate fitted
            with a penalty, the difficulty of instructions or gamed baselines: the rate is kept, the
            error is that of the minimal one.

    Returns:
        (n,) pseudo-values.
    """
    n = len(judged.score)
    (rate,) = minimal_rates(judged, np.ones((1, n)))
    without = np.empty(n)
    for at in range(0, n, CHUNK):
        part = np.arange(at, min(at + CHUNK, n))
        counts = np.ones((len(part), n))
        counts[np.arange(len(part)), part] = 0
        without[part] = minimal_rates(judged, counts)
    values = n * rate - (n - 1) * without
    return values - values.mean() + (rate if published is None else published)


def minimal_rates(judged: ScoredPairs, counts: np.ndarray) -> np.ndarray:
    """(fits,) minimal rates by maximum likelihood, with items counted (fits, n) times."""
    length = length_feature(judged.delta, counts)
    design = np.stack([length, np.ones(counts.shape)], -1)
    return expit(fit_newton(design, judged.score, counts)[..., -1])


# -- the regression ------------------------------------------------------------------------------


def regression(
    judged: ScoredPairs, sides: LengthControlData | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design (m, k), target (m,) and weight (m,).

    Gamed rows come first, as in alpaca_eval: the folds of its cross-validation depend on it.
    """
    ones = np.ones(len(judged.score))
    length = length_feature(judged.delta, ones)
    if sides is None:
        return np.stack([length, ones], -1), judged.score, ones
    own = np.stack([length, sides.difficulty[judged.position], ones], -1)
    columns = [
        np.tanh(sides.gamed_scaled_delta),
        sides.difficulty[sides.gamed_index],
        np.zeros(len(sides.gamed_score)),
    ]
    return (
        np.concatenate([np.stack(columns, -1), own]),
        np.concatenate([sides.gamed_score, judged.score]),
        np.concatenate([np.full(len(sides.gamed_score), GAMED_WEIGHT), ones]),
    )


def length_feature(delta: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """tanh of delta (n,) over its deviation, of rows drawn counts (..., n) times; (..., n)."""
    sd = deviation(delta, counts)[..., None]
    # Without any spread there is no length effect to speak of: its feature is 0.
    return np.tanh(np.divide(delta, sd, out=np.zeros(counts.shape), where=sd > 0))


def deviation(delta: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Standard deviation (...,) with ddof 1 of delta (n,), drawn counts (..., n) times."""
    total = counts.sum(-1)
    mean = (counts * delta).sum(-1) / total
    squares = (counts * (delta - mean[..., None]) ** 2).sum(-1)
    return np.sqrt(squares / np.maximum(total - 1, 1))


# -- fits: logistic regression on shares in [0, 1], without intercept ----------------------------


def fit_published(design: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of design (n, k) for target (n,), rows weighted by weight (n,).

    Each row enters twice, as a success of weight p and as a failure of weight 1 - p, both in the
    same of 5 folds. Targets that are all 0 or all 1 have no published fit and get the plain one.
    UserError without scikit-learn 1.8 or later, or with fewer rows than folds.
    """
    if len(target) < FOLDS:
        raise UserError(
            f"{len(target)} scored comparisons are too few for the length-controlled win rate; it "
            f"needs {FOLDS}, and means little below some hundred"
        )
    if (target == 0).all() or (target == 1).all():
        # liblinear passes over rows of weight 0, is left with one class, and calls it a half.
        return fit_newton(design, target, weight)
    sklearn, model = _cross_validated()
    share = np.concatenate([target, 1 - target])
    twice = np.tile(weight, 2)
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([design, design]),
            np.repeat([1, 0], len(target)),
            sample_weight=share * twice,
            groups=np.tile(np.arange(len(target)), 2),
            true_prob=share,
            true_sample_weight=twice,
        )
    return model.coef_[0]


def _cross_validated():
    """(scikit-learn, the unfitted model)."""
    try:
        import sklearn
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.metrics import make_scorer
        from sklearn.model_selection import GroupKFold

        with sklearn.config_context(enable_metadata_routing=True):
            scorer = make_scorer(
                _log_loss, response_method="predict_proba", greater_is_better=False
            ).set_score_request(true_prob=True, true_sample_weight=True)
        # The keywords of 1.8; before it, l1_ratios would have meant nothing to liblinear.
        model = LogisticRegressionCV(
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            cv=GroupKFold(n_splits=FOLDS),
            scoring=scorer,
            random_state=SEED,
            use_legacy_attributes=False,
        )
    except (ImportError, TypeError) as error:
        raise UserError(
            "the length-controlled win rate is fitted with scikit-learn 1.8 or later "
            f"({error}); pip install 'scikit-learn>=1.8'"
        ) from None
    return sklearn, model


def _log_loss(y_true, y_pred, true_prob, true_sample_weight) -> float:
    """Weighted mean log loss against shares; `true_prob` is the share of the row's own label."""
    share = np.where(y_true == 1, true_prob, 1 - true_prob)
    chance = np.clip(y_pred, 1e-15, 1 - 1e-15)
    loss = share * np.log(chance) + (1 - share) * np.log(1 - chance)
    return -np.mean(loss * true_sample_weight)


def fit_newton(design: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Maximum-likelihood coefficients (..., k) of design (..., n, k), target and weight (..., n).

    Leading dimensions are separate fits, made together. ArithmeticError if one does not converge.
    """
    k, columns = design.shape[-1], np.swapaxes(design, -1, -2)
    beta = np.zeros((*design.shape[:-2], k))
    linear, loss = _loss(beta, design, target, weight)
    for _ in range(STEPS):
        chance = expit(linear)
        slope = columns @ (weight * (target - chance))[..., None] - RIDGE * beta[..., None]
        curved = design * (weight * chance * (1 - chance))[..., None]
        step = np.linalg.solve(columns @ curved + RIDGE * np.eye(k), slope)[..., 0]
        # Where classes can nearly be separated, a whole step goes too far: halve it.
        allowed = loss + ROUNDING * (1 + np.abs(loss))
        for _ in range(HALVINGS):
            linear, loss = _loss(beta + step, design, target, weight)
            worse = loss > allowed
            if not worse.any():
                break
            step = np.where(worse[..., None], step / 2, step)
        beta = beta + step
        if np.abs(step).max() < CLOSE:
            return beta
    raise ArithmeticError(f"a logistic regression did not converge in {STEPS} Newton steps")


def _loss(
    beta: np.ndarray, design: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(linear predictor (..., n), penalised loss (...,))."""
    linear = (design @ beta[..., None])[..., 0]
    rows = (weight * (np.logaddexp(0, linear) - target * linear)).sum(-1)
    return linear, rows + RIDGE / 2 * (beta**2).sum(-1)
