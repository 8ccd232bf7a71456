"""All that this package uses of what transformers keeps private; see `tests/lm/test_private.py`.

Tried with transformers 5.23.0. Who moves to another version runs that test first.
"""

from __future__ import annotations

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
