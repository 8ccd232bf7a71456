"""All that this package uses of what transformers keeps private; see `tests/lm/test_private.py`.

Tried with transformers 5.16.0, 5.19.0 and 5.23.0. Who moves to another version runs that test
first.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, modeling_utils

from deltalearn.lm.weights import write_header

SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


ROTARY = "apply_rotary_pos_emb"


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


def with_rotary(forward: Callable, rotary: Callable) -> Callable:
    """The forward of an attention layer with another function for rotary embeddings.

    Layers look it up as a global of their module, which is that of every model of the kind; a copy
    of the function with globals of its own changes one layer alone.

    Args:
        forward: Of a class of attention layers.
        rotary: (q, k, cos, sin) -> (q, k).

    Returns:
        The function; `forward` itself where it does not look it up.
    """
    if ROTARY not in forward.__code__.co_names:
        return forward
    own = {**forward.__globals__, ROTARY: rotary}
    del own["__name__"]  # or torch.compile would look the function up in the module after all
    found = FunctionType(
        forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__
    )
    found.__kwdefaults__ = forward.__kwdefaults__
    return found


def forget_stored_names(model: PreTrainedModel) -> None:
    """Let `model` be written under its class's own names, not those of the files it came from.

    What was read in fewer bits would be written through steps that cannot be reversed.
    """
    model._weight_conversions = None


def stays_float32(model: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """True if the class of `model` keeps the weight `name` in float32 when loaded in `dtype`."""
    parts = (pattern.replace("*", "[^.]+") for pattern in model._get_dtype_plan(dtype))
    return any(re.search(rf"(^|\.){part}(\.|$)", name) for part in parts)


class _OrNothing(dict[Any, Any]):
    """A dict whose `get` gives an empty one for a key that is not there."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key, {} if default is None else default)


def let_fp8_load() -> None:
    """Let transformers 5.16 load weights in FP8, at which it fails for want of a plan it needs not.

    Later versions are left as they are.
    """
    module = importlib.import_module("transformers.integrations.finegrained_fp8")
    experts: Any = getattr(module, "FP8Experts", None)
    plans = getattr(experts, "_impl_tp_layer_overrides", None)
    if isinstance(plans, dict) and not isinstance(plans, _OrNothing):
        experts._impl_tp_layer_overrides = _OrNothing(plans)


@contextmanager
def headers_alone() -> Iterator[None]:
    """Within the block, `save_pretrained` writes weight files whose numbers are holes."""

    def save(
        tensors: Mapping[str, torch.Tensor],
        filename: str | Path,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        shapes = {name: (SAFETENSORS_TYPES[t.dtype], list(t.shape)) for name, t in tensors.items()}
        write_header(Path(filename), shapes, dict(metadata or {}))

    with patch.object(modeling_utils, "safe_save_file", save):
        yield
