"""Logistic regression on shares in [0, 1], without intercept: as published, and plain.

Published (alpaca_eval 0.6.6, metrics/glm_winrate.py): L1 penalty, liblinear, its strength chosen
by cross-validation; scikit-learn's own, so that numbers agree with the package's. Plain: maximum
likelihood by Newton's method, many fits at a time, which a bootstrap needs.
"""

from __future__ import annotations

import numpy as np

from deltalearn.errors import UserError

FOLDS = 5
SEED = 123
RIDGE = 1e-6  # keeps coefficients finite where the classes can be separated
STEPS = 100
HALVINGS = 40  # of a step
CLOSE = 1e-8  # a step that changes no coefficient by more is the last
ROUNDING = 1e-13  # of a loss


def fit_published(
    design: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
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
        return fit_newton(design, target, np.ones(len(target)) if weight is None else weight)
    sklearn, model = _cross_validated()
    share = np.concatenate([target, 1 - target])
    twice = None if weight is None else np.tile(weight, 2)
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True)
        model.fit(
            np.concatenate([design, design]),
            np.repeat([1, 0], len(target)),
            sample_weight=share if twice is None else share * twice,
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


def _log_loss(y_true, y_pred, true_prob, true_sample_weight=None) -> float:
    """Mean log loss against shares; `true_prob` is the share of the row's own label."""
    share = np.where(y_true == 1, true_prob, 1 - true_prob)
    chance = np.clip(y_pred, 1e-15, 1 - 1e-15)
    loss = share * np.log(chance) + (1 - share) * np.log(1 - chance)
    if true_sample_weight is not None:
        loss = loss * true_sample_weight
    return -np.mean(loss)


def fit_newton(
    design: np.ndarray, target: np.ndarray, weight: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Maximum-likelihood coefficients (..., k) of design (..., n, k), target and weight (..., n).

    Leading dimensions are separate fits. start: (k,), where to begin, 0 by default. ArithmeticError
    if one does not converge.
    """
    k = design.shape[-1]
    beta = np.broadcast_to(np.zeros(k) if start is None else start, (*design.shape[:-2], k))
    linear, loss = _loss(beta, design, target, weight)
    for _ in range(STEPS):
        chance = sigmoid(linear)
        slope = _columns_times(design, weight * (target - chance)) - RIDGE * beta
        curved = design * (weight * chance * (1 - chance))[..., None]
        curvature = np.swapaxes(design, -1, -2) @ curved + RIDGE * np.eye(k)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
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
    softplus = np.maximum(linear, 0) + np.log1p(np.exp(-np.abs(linear)))
    rows = (weight * (softplus - target * linear)).sum(-1)
    return linear, rows + RIDGE / 2 * (beta**2).sum(-1)


def _columns_times(design: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (np.swapaxes(design, -1, -2) @ rows[..., None])[..., 0]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)
