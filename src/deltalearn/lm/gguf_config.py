"""The config of a model from a GGUF file: what transformers leaves out of it is put in, or refused.

transformers reads the sizes of a model from a GGUF file and takes the defaults of its class for
what it does not know: the scaling of rotary positions, windows, soft caps. Weights would fit, and
answers would be those of another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deltalearn.errors import UserError
from deltalearn.lm.gguf_header import GgufHeader

SAME = {  # a setting of the file, and what it is called in the config of transformers
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
OTHER_NAMES = {  # of one thing in the configs of some families
    "rms_norm_eps": ("norm_eps", "norm_epsilon", "layer_norm_epsilon"),
    "layer_norm_eps": ("norm_eps", "norm_epsilon", "layer_norm_epsilon"),
    "num_experts": ("num_local_experts",),
    "intermediate_size": ("n_inner", "feed_forward_length"),
}
# They are no weights' shape, so that the config can be put right.
SETTABLE = frozenset(
    ["max_position_embeddings", "rms_norm_eps", "layer_norm_eps", "sliding_window",
     "attn_logit_softcapping", "final_logit_softcapping"]
)  # fmt: skip
LOCAL, GLOBAL = "sliding_attention", "full_attention"  # where rotary settings are by kind of layer
ROPE_FACTORS = "rope_freqs.weight"  # llama.cpp's form of the scaling of Llama 3
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WIDER = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose queries are scaled otherwise


def complete_config(name: str, config: Any, header: GgufHeader) -> list[str]:
    """Put what a GGUF file says of its model into the config that transformers made of it.

    Args:
        name: The model, for errors.
        config: Of transformers; changed.
        header: Of the file.

    Returns:
        Names of the tensors that went into the config.

    Raises:
        UserError: If the file has a setting that has no place in the config.
    """
    text = config.get_text_config()
    settings = dict(header.settings)
    for key in [key for key in settings if key.startswith("rope.")]:
        settings.pop(key)
    if (layers := WIDER.get(header.architecture)) and text.num_hidden_layers == layers:
        text.query_pre_attn_scalar = text.hidden_size // text.num_attention_heads
    unread = [key for key, value in settings.items() if not _taken(text, key, value)]
    if unread:
        raise UserError(
            f"{name}: the file has settings that transformers does not take from it "
            f"({', '.join(f'{key} = {settings[key]!r}' for key in unread[:4])}), so it would be "
            "another model; give the model that it was made from, or a server that runs the file"
        )
    return _positions(name, text, header)


def _taken(config: Any, key: str, value: Any) -> bool:
    """Whether a setting is in the config, or changes nothing."""
    if key not in SAME:
        return not value or (key, value) == ("attention.causal", True)
    names = (SAME[key], *OTHER_NAMES.get(SAME[key], ()))
    attribute = next((name for name in names if hasattr(config, name)), None)
    if attribute is None:
        if key not in ("attention.key_length", "attention.value_length"):
            return not value
        return value == config.hidden_size // config.num_attention_heads
    found = getattr(config, attribute)
    if _equal(found, value) or (key == "expert_count" and not value):
        return True
    if isinstance(value, list):  # by layer
        return len(set(value)) == 1 and _equal(found, value[0])
    if key == "attention.value_length" and config.model_type == "minimax_m2":
        return True
    if SAME[key] in SETTABLE:
        setattr(config, attribute, value)
        return True
    return False


def _equal(found: Any, value: Any) -> bool:
    if isinstance(found, int | float) and isinstance(value, int | float):
        return math.isclose(found, value, rel_tol=1e-6)
    return bool(found == value)


def _positions(name: str, config: Any, header: GgufHeader) -> list[str]:
    """Rotary positions: their base and how they are scaled."""
    given = {k.removeprefix("rope."): v for k, v in header.settings.items() if "rope." in k}
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        if scaling := [key for key in given if key.startswith("scaling.")]:
            raise _unknown(name, {key: given[key] for key in scaling})
        return []
    rope = {**rope}
    of_all = rope.setdefault(GLOBAL, {}) if GLOBAL in rope else rope
    if "freq_base" in given:
        of_all["rope_theta"] = given["freq_base"]
    if "freq_base_swa" in given and LOCAL in rope:
        rope[LOCAL]["rope_theta"] = given["freq_base_swa"]
    if "dimension_count" in given and "partial_rotary_factor" in of_all:
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        of_all["partial_rotary_factor"] = given["dimension_count"] / width
    of_all |= _scaling(name, given)
    config.rope_parameters = rope
    return [ROPE_FACTORS] if ROPE_FACTORS in header.sizes else []


def _scaling(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    scaling = {k.removeprefix("scaling."): v for k, v in given.items() if k.startswith("scaling.")}
    kind, factor = scaling.get("type", "none"), scaling.get("factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    original = scaling.get("original_context_length")
    if kind == "yarn" and original and not scaling.get("yarn_log_multiplier"):
        values = {"rope_type": "yarn", "factor": factor}
        return {**values, "original_max_position_embeddings": original}
    raise _unknown(name, scaling)


def _unknown(name: str, scaling: Mapping[str, Any]) -> UserError:
    return UserError(
        f"{name}: scales its positions in a way that is not read from GGUF files "
        f"({dict(scaling)}); give the model that it was made from"
    )


def llama3_scaling(name: str, config: Any, factors: list[float]) -> None:
    """Recognise Llama 3's scaling of rotary positions by its factors, and put it into a config.

    Args:
        name: The model, for errors.
        config: Of transformers; changed.
        factors: By which the wavelengths are stretched, one for each pair of a head's dimensions.

    Raises:
        UserError: If they are not what Llama 3 makes of any factor.
    """
    factor = round(max(factors))
    rope = {**config.rope_parameters, "rope_type": "llama3", "factor": float(factor), **LLAMA3}
    expected = _llama3_factors(rope, len(factors))
    if any(not math.isclose(a, b, rel_tol=1e-4) for a, b in zip(factors, expected, strict=True)):
        raise _unknown(name, {ROPE_FACTORS: factors[:4]})
    config.rope_parameters = rope


def _llama3_factors(rope: Mapping[str, Any], number: int) -> list[float]:
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    found = []
    for i in range(number):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / number)
        smooth = (original / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
