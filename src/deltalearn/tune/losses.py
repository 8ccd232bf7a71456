"""Preference losses: pure functions of four log-probability tensors and two lengths.

All take the same six tensors in the same order, each of shape (B,): log-probabilities of the
chosen and the rejected answer under policy and reference, summed over answer tokens (the
end-of-turn token included where the answer has one), and the numbers of those tokens, at least 1.
Reference-free losses ignore the reference, which may then be None. All return (losses, margins),
each (B,), in the dtype of the log-probabilities; tensors of any other shape are a ValueError.

A margin is what the loss sees before beta, so that the logged margin times beta is the argument
of the loss. Where the loss treats the two sides apart (apo_zero, apo_down, sppo) it
is their difference; for orpo see there. Below, r is a log-ratio log policy - log reference, |y| a
length, m the margin and s the label smoothing. Defaults are those of `deltalearn.recipe.methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltalearn.recipe import TuneSpec
from deltalearn.recipe.methods import DEFAULT_GAMMA, DEFAULT_SMOOTHING, METHODS

Loss = Callable[..., tuple[Tensor, Tensor]]
Sides = tuple[Any, ...]  # tensors of chosen and rejected, each (B,); of no reference two None
BETA = {name: method.beta for name, method in METHODS.items() if method.beta is not None}
PREFERENCE_LOSSES: dict[str, Loss] = {}  # by method name, filled by @_loss


def _ratios(policy: Sides, reference: Sides, lengths: Sides) -> Sides:
    return policy[0] - reference[0], policy[1] - reference[1]


def _ratios_per_token(policy: Sides, reference: Sides, lengths: Sides) -> Sides:
    return _means(_ratios(policy, reference, lengths), reference, lengths)


def _means(policy: Sides, reference: Sides, lengths: Sides) -> Sides:
    return policy[0] / lengths[0], policy[1] / lengths[1]


def _loss(scores: Callable[[Sides, Sides, Sides], Sides]) -> Callable[[Loss], Loss]:
    """Name a loss in PREFERENCE_LOSSES and check what it is called with.

    Without the check a (B, 1) or a token mask would broadcast and give a number. The formula itself
    sees of the six tensors only the `scores` of both sides.
    """

    def decorate(formula: Loss) -> Loss:
        name = formula.__name__

        @wraps(formula)
        def checked(*tensors: Tensor | None, **options: float) -> tuple[Tensor, Tensor]:
            if METHODS[name].reference and any(tensor is None for tensor in tensors):
                raise ValueError(f"{name} needs the log-probabilities of the reference, not None")
            shapes = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
            if len(tensors) != 6 or len(set(shapes)) != 1 or len(shapes[0]) != 1:
                raise ValueError(f"{name} takes six tensors of one shape (B,), not {shapes}")
            return formula(*scores(tensors[:2], tensors[2:4], tensors[4:]), **options)

        PREFERENCE_LOSSES[name] = checked
        return checked

    return decorate


def _weighted_labels(x: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """-log sigmoid(x) and -log sigmoid(-x), weighted with the share of right and flipped labels."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5: {label_smoothing}")
    return -(1 - label_smoothing) * F.logsigmoid(x), -label_smoothing * F.logsigmoid(-x)


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, without overflow or cancellation.

    Certainty (log p = 0, or above it by rounding) has infinite odds and an infinite gradient: it
    counts as the nearest probability below 1 that the dtype resolves.
    """
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return logprob - torch.log(-torch.expm1(logprob))


@_loss(_ratios_per_token)
def dpo_norm(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = BETA["dpo_norm"],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Length-normalised DPO: `dpo` with m = r_chosen / |chosen| - r_rejected / |rejected|.

    The loss of the paper (arXiv 2507.06187), of Tülu 3 (arXiv 2411.15124, eq. 6) and of Olmo 3
    (arXiv 2512.13961, appendix A.6.2). label_smoothing as for `dpo`.
    """
    margins = chosen - rejected
    as_labelled, flipped = _weighted_labels(beta * margins, label_smoothing)
    return as_labelled + flipped, margins


@_loss(_ratios)
def dpo(
    chosen: Tensor, rejected: Tensor, *, beta: float = BETA["dpo"], label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """-(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m), with m = r_chosen - r_rejected.

    Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); with label
    smoothing conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3).
    """
    margins = chosen - rejected
    as_labelled, flipped = _weighted_labels(beta * margins, label_smoothing)
    return as_labelled + flipped, margins


@_loss(_ratios_per_token)
def ipo(chosen: Tensor, rejected: Tensor, *, beta: float = BETA["ipo"]) -> tuple[Tensor, Tensor]:
    """(m - 1 / (2 beta))^2, with m = r_chosen / |chosen| - r_rejected / |rejected|.

    Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17, where beta is
    tau). The equation has sums; log-ratios per token are what its authors ran and what TRL
    computes, since a target for sums would mean less the longer the answers are.
    """
    margins = chosen - rejected
    return (margins - 1 / (2 * beta)) ** 2, margins


@_loss(_ratios)
def hinge(
    chosen: Tensor, rejected: Tensor, *, beta: float = BETA["hinge"]
) -> tuple[Tensor, Tensor]:
    """max(0, 1 - beta m), with m = r_chosen - r_rejected.

    The hinge of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on log-ratios, as in RSO (Liu et al.
    2023, arXiv 2309.06657, hinge-norm).
    """
    margins = chosen - rejected
    return F.relu(1 - beta * margins), margins


@_loss(_ratios)
def robust(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = BETA["robust"],
    label_smoothing: float = DEFAULT_SMOOTHING["robust"],
) -> tuple[Tensor, Tensor]:
    """(-(1 - s) log sigmoid(beta m) + s log sigmoid(-beta m)) / (1 - 2 s), with m of `dpo`.

    Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): if a share s of labels is flipped at
    random, its expectation is the `dpo` loss of the true labels. It has no lower bound.
    """
    margins = chosen - rejected
    as_labelled, flipped = _weighted_labels(beta * margins, label_smoothing)
    return (as_labelled - flipped) / (1 - 2 * label_smoothing), margins


@_loss(_ratios)
def apo_zero(
    chosen: Tensor, rejected: Tensor, *, beta: float = BETA["apo_zero"]
) -> tuple[Tensor, Tensor]:
    """(1 - sigmoid(beta r_chosen)) + sigmoid(beta r_rejected): raises chosen, lowers rejected.

    Anchored preference optimisation (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7), for
    chosen answers better than the student's own. The margin is r_chosen - r_rejected.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected), chosen - rejected


@_loss(_ratios)
def apo_down(
    chosen: Tensor, rejected: Tensor, *, beta: float = BETA["apo_down"]
) -> tuple[Tensor, Tensor]:
    """sigmoid(beta r_chosen) + (1 - sigmoid(beta m)), with m = r_chosen - r_rejected.

    Anchored preference optimisation (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8), for
    chosen answers worse than the student's own: lowers chosen, and rejected more.
    """
    margins = chosen - rejected
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * margins), margins


@_loss(_ratios)
def sppo(chosen: Tensor, rejected: Tensor, *, beta: float = BETA["sppo"]) -> tuple[Tensor, Tensor]:
    """(r_chosen - 1 / (2 beta))^2 + (r_rejected + 1 / (2 beta))^2.

    Self-play preference optimisation (Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with eta = 1 /
    beta) with hard labels: chosen wins with probability 1. The margin is r_chosen - r_rejected.
    """
    target = 1 / (2 * beta)
    return (chosen - target) ** 2 + (rejected + target) ** 2, chosen - rejected


@_loss(_means)
def simpo(
    chosen: Tensor, rejected: Tensor, *, beta: float = BETA["simpo"], gamma: float = DEFAULT_GAMMA
) -> tuple[Tensor, Tensor]:
    """-log sigmoid(beta m), with m = mean log p(chosen) - mean log p(rejected) - gamma / beta.

    SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6), without a reference. Means are per token;
    a margin above zero says that chosen leads by more than the target gamma / beta.
    """
    margins = chosen - rejected - gamma / beta
    return -F.logsigmoid(beta * margins), margins


@_loss(_means)
def orpo(chosen: Tensor, rejected: Tensor, *, beta: float = BETA["orpo"]) -> tuple[Tensor, Tensor]:
    """-mean log p(chosen) - beta log sigmoid(m), with m = log odds(chosen) - log odds(rejected).

    ORPO (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7, where beta is lambda), without a
    reference: odds(y) = p / (1 - p) and log p the mean log-probability per token. beta weighs the
    term instead of scaling its argument, so here the margin itself is that argument.
    """
    margins = _log_odds(chosen) - _log_odds(rejected)
    return -chosen - beta * F.logsigmoid(margins), margins


def bind_loss(settings: TuneSpec) -> Loss:
    """Set the options of `settings.method`'s loss.

    Returns:
        A function of the six tensors alone, all (B,), to (losses, margins), both (B,).

    Raises:
        ValueError: For sft, which compares nothing.
    """
    if settings.method not in PREFERENCE_LOSSES:
        raise ValueError(f"{settings.method} is not a preference loss")
    options = {"beta": settings.effective_beta}
    takes = METHODS[settings.method].options
    if "label_smoothing" in takes:
        options["label_smoothing"] = settings.effective_smoothing
    if "gamma" in takes:
        options["gamma"] = settings.effective_gamma
    return partial(PREFERENCE_LOSSES[settings.method], **options)


def loss_at_start(settings: TuneSpec) -> float | None:
    """The loss of every pair while the policy is the reference, whatever the pair.

    ln 2 for the logistic losses, 1 for hinge and apo, 1 / (4 beta^2) for ipo, 1 / (2 beta^2) for
    sppo; None for sft and reference-free losses, where it depends on the pair. Terms that are
    added to the loss, such as nll_coef, are not in it.
    """
    if not METHODS[settings.method].reference:
        return None
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    losses, _ = bind_loss(settings)(zero, zero, zero, zero, one, one)
    return losses.item()
