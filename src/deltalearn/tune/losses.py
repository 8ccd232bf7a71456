"""Preference losses: pure functions of four log-probability tensors and two lengths.

Every argument has shape (B,). Log-probabilities are sums over answer tokens (the end-of-turn
token included where the answer has one), lengths are the numbers of those tokens. Each function
returns (losses, margins), both (B,): the loss is -log sigmoid(beta * margin), so the logged margin
is exactly what the loss sees (PEERS B17).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

LOSS_AT_START = math.log(2)  # of both losses when the policy is the reference


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7); lengths play no part."""
    margins = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -F.logsigmoid(beta * margins), margins


def dpo_norm(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Length-normalised DPO: each side's log-ratio is divided by its own length.

    The loss of the paper (arXiv 2507.06187), of Tülu 3 (arXiv 2411.15124, eq. 6) and of Olmo 3
    (arXiv 2512.13961, appendix A.6.2).
    """
    chosen = (policy_chosen - reference_chosen) / chosen_lengths
    rejected = (policy_rejected - reference_rejected) / rejected_lengths
    margins = chosen - rejected
    return -F.logsigmoid(beta * margins), margins


PREFERENCE_LOSSES = {"dpo_norm": dpo_norm, "dpo": dpo}
