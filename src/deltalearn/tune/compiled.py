"""Layers compiled by torch: fewer and larger kernels between the matrix products."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.attention import keep_out_of_graphs
from deltalearn.lm.transformers_private import layer_classes

ERROR_CHARS = 300  # of a compiler's error


def compile_layers(model: PreTrainedModel, device: str) -> None:
    """Compile each layer of a model, in place; one graph serves all layers and all lengths.

    A layer at a time, since a whole model takes minutes to compile and much longer to find faults
    in. Attention stays what it is.

    Args:
        model: The bare model of transformers.
        device: Type of the device where it will run.

    Raises:
        UserError: If torch cannot compile on this machine.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # a missing compiler shows in a dozen ways
        told = " ".join(str(error).split())[:ERROR_CHARS]
        raise UserError(
            f"tune.compile: torch cannot compile here ({told}); it needs a C++ compiler, and "
            "Triton on a GPU. Install them, or leave compile out"
        ) from error
    keep_out_of_graphs()
    names = layer_classes(model)
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile(dynamic=True)
