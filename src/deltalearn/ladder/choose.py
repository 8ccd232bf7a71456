"""Which layers to leave out: greedily, each time the one whose absence raises the loss least.

Each step tries every layer that is left, so that k of n layers read the texts about k n times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from deltalearn.ladder.layers import passed_by
from deltalearn.ladder.texts import Ids, loglik
from deltalearn.util.progress import progress


@dataclass(frozen=True)
class Step:
    """One more layer that is left out.

    Attributes:
        layer: Its number.
        losses: Mean loss of a token (nats) without each of the layers that were left; infinite of
            one that the others need.
    """

    layer: int
    losses: dict[int, float]


def choose_layers(
    model: PreTrainedModel, layers: nn.ModuleList, texts: Sequence[Ids], number: int
) -> list[Step]:
    """Choose layers to leave out, one at a time.

    Args:
        model: All of it, after `learn_form`.
        layers: Its layers, more than `number`.
        texts: What the loss is taken on.
        number: Of layers to leave out.

    Returns:
        A step for each, in order; of equal losses the later layer.
    """
    steps: list[Step] = []
    tries = sum(len(layers) - at for at in range(number))
    with progress("choose layers", total=tries, unit="tries") as bar:
        for _ in range(number):
            gone = [step.layer for step in steps]
            losses = {}
            for layer in range(len(layers)):
                if layer in gone:
                    continue
                losses[layer] = _loss_without(model, layers, [*gone, layer], texts)
                bar.advance(1, amount=1)
            steps.append(Step(min(losses, key=lambda at: (losses[at], -at)), losses))
    return steps


def _loss_without(
    model: PreTrainedModel, layers: nn.ModuleList, gone: Sequence[int], texts: Sequence[Ids]
) -> float:
    """Mean loss of a token; infinite where the other layers cannot do without these."""
    try:
        with passed_by(layers, gone):
            loss = float(-loglik(model, texts).mean())
    except (LookupError, TypeError, ValueError, AttributeError):  # of an architecture's own code
        return math.inf
    return loss if math.isfinite(loss) else math.inf
