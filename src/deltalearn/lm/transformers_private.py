"""All that this package uses of what transformers keeps private; see `tests/lm/test_private.py`.

Tried with transformers 5.23.0. Who moves to another version runs that test first.
"""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel


def attention_name(model: PreTrainedModel) -> str:
    """Name of the attention that `model` uses, as `set_attn_implementation` takes it."""
    return model.config._attn_implementation


def takes_attention_functions(model: PreTrainedModel) -> bool:
    """True if the layers of `model` look their attention function up by its name."""
    return any(
        getattr(model, name, False) for name in ("_supports_attention_backend", "_supports_sdpa")
    )


def carries_state(model: PreTrainedModel) -> bool:
    """True if `model` hands a state from token to token besides attention, as Mamba does."""
    return getattr(model, "_is_stateful", False)


def layer_classes(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the classes of layers that are not to be split over devices."""
    return tuple(model._no_split_modules or ())


def forget_stored_names(model: PreTrainedModel) -> None:
    """Let `model` be written under its class's own names, not those of the files it came from.

    What was read in fewer bits would be written through steps that cannot be reversed.
    """
    model._weight_conversions = None


def stays_float32(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """True if the class of `model` keeps the weight `name` in float32 when loaded in `dtype`."""
    parts = (pattern.replace("*", "[^.]+") for pattern in model._get_dtype_plan(dtype))
    return any(re.search(rf"(^|\.){part}(\.|$)", name) for part in parts)
