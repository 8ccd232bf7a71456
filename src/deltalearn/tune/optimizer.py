"""The optimiser of a run, by its name in the recipe."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from deltalearn.errors import UserError, needs
from deltalearn.recipe import TuneSpec


def make_optimizer(
    model: nn.Module, settings: TuneSpec, device: torch.device
) -> torch.optim.Optimizer:
    """An optimiser over the trainable parameters of `model`, on `device` or still to be moved.

    The loop sets the learning rate of every group at every step. Decoupled weight decay leaves
    out vectors, which are norms and biases, as is usual since BERT.

    adamw: Loshchilov & Hutter 2019. adamw_8bit: the same with moments in 8 bits (Dettmers et al.
    2022); UserError without bitsandbytes. adafactor: Shazeer & Stern 2018 with factored second
    moments and no first; its steps are of size lr as in AdamW, so they are not scaled by the size
    of each weight, as those of torch.optim.Adafactor always are. The last two work on whole
    weights only: UserError with `settings.shard`.
    """
    if settings.shard and settings.optimizer != "adamw":
        raise UserError(
            f"tune.optimizer {settings.optimizer} cannot work on weights that shard splits; use "
            "adamw, whose moments are split over the processes too, or leave shard out"
        )
    groups = _decay_groups(model, settings.weight_decay)
    if settings.optimizer == "adafactor":
        from transformers import Adafactor  # late: it brings in peft and bitsandbytes if it can

        return Adafactor(groups, lr=settings.lr, scale_parameter=False, relative_step=False)
    if settings.optimizer == "adamw_8bit":
        return _adamw_8bit()(groups, lr=settings.lr, betas=settings.adam_betas)
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=settings.adam_betas,
        fused=device.type in ("cpu", "cuda"),
    )


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not weight_decay:
        return [{"params": trainable, "weight_decay": 0.0}]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    needed = "tune.optimizer adamw_8bit needs bitsandbytes"
    with needs(needed, "qlora", ", or choose adamw or adafactor"):
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit
