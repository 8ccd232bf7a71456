"""Gradient checkpointing of some layers: their activations are computed again in the backward."""

from __future__ import annotations

import math
from typing import Literal

from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.tune.measure import decoder_layers


def layers_in(share: float, layers: int) -> int:
    """The number of layers in a share of them, rounded up; True is all of them."""
    return math.ceil(round(share * layers, 6))  # a tenth of 30 is 3, though not in floats


def checkpoint_layers(
    model: PreTrainedModel, share: float | Literal["auto"], fitting: int | None = None
) -> None:
    """Let the first layers of a model keep their input alone, in place.

    The first, since what the last ones keep is freed before a first one is computed again.

    Args:
        model: The bare model of transformers.
        share: Of its layers, from 0 (False) to 1 (True). auto: `fitting` of them, and all where the
            model cannot take some.
        fitting: Number of layers with which a step fits; None, not known, is all of them.

    Raises:
        UserError: If the model cannot do that.
    """
    layers, automatic = decoder_layers(model), share == "auto"
    if isinstance(share, str):
        count = len(layers) if fitting is None else fitting
    else:
        count = layers_in(share, len(layers))
    if not count:
        return
    kind = model.config.model_type
    try:
        # Its name until transformers 5.16 or so, and a warning since.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"tune.gradient_checkpointing: {kind} cannot compute its layers again; use false"
        ) from error
    switches = [[m for m in x.modules() if hasattr(m, "gradient_checkpointing")] for x in layers]
    if all(switches):
        for layer in switches[count:]:
            for module in layer:
                module.gradient_checkpointing = False  # type: ignore[assignment]
    elif count < len(layers) and not automatic:
        raise UserError(
            f"tune.gradient_checkpointing: {kind} computes all of its layers again or none; use "
            "true or false"
        )
