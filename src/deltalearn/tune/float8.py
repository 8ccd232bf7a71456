"""Matrix products of the layers in 8-bit floats, by torchao; the weights stay what they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from deltalearn.errors import UserError, needs
from deltalearn.tune.measure import decoder_layers

LEAST_CAPABILITY = (8, 9)  # Ada and Hopper: the first with such products
MULTIPLE = 16  # of both sides of a matrix, for the kernels
# A scale for each token, so that its value does not depend on what else is in the forward (the
# reference is scored in other forwards), and gradients of weights in full precision.
SCALING = "rowwise_with_gw_hp"


def require_float8(device: str, dtype: str) -> None:
    """Check that the device can, and that torchao is here.

    Args:
        device: Type of the device.
        dtype: Name of the run's precision.

    Raises:
        UserError: If not.
    """
    otherwise = "; leave float8 out"
    if device != "cuda" or torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        have = device if device != "cuda" else torch.cuda.get_device_name()
        raise UserError(
            f"tune.float8 needs a GPU of compute capability 8.9 or more, not {have}{otherwise}"
        )
    if dtype != "bfloat16":
        raise UserError(f"tune.float8 needs dtype bfloat16, not {dtype}{otherwise}")
    with needs("tune.float8 needs torchao", "float8", ", or leave float8 out"):
        import torchao.float8  # noqa: F401


def use_float8(model: PreTrainedModel, *, emulate: bool = False) -> int:
    """Let the layers of a model compute their matrix products in 8-bit floats, in place.

    Not the head, whose errors would go into every log-probability, and no adapters, which are
    small. Weights are rounded anew at every forward; they, their names and gradients stay.

    Args:
        model: The bare model of transformers, maybe with adapters.
        emulate: Round, but multiply in float32, on any device.

    Returns:
        Number of linear maps.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name(SCALING)
    chosen = {
        id(module)
        for layer in decoder_layers(model)
        for name, module in layer.named_modules()
        if type(module) is nn.Linear
        and "lora_" not in name
        and module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0
    }
    convert_to_float8_training(
        model,
        config=replace(config, emulate=emulate),
        module_filter_fn=lambda module, _: id(module) in chosen,
    )
    return len(chosen)
