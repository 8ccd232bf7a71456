"""A tiny config of any causal model type of transformers: its defaults, numbers shrunk by name.

What decides how a model computes (kinds of layers, experts, latent attention, recurrence, scales)
is left as the type has it; what decides its size alone is shrunk. A kind of layer that a type has
stays in the few layers that are left.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 4
MODEL_TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

LAYER_NUMBERS = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_blocks",
    "num_decoder_layers", "num_layers_per_stack",
)  # fmt: skip
_BY_VALUE = {
    32: "hidden_size d_model n_embd hidden_dim embedding_size emb_dim dim dim_model embedding_dim "
    "backbone_hidden_size attention_hidden_size hidden_size_global out_hidden_size lru_width "
    "projector_input_dim projector_output_dim vision_output_dim adapter_out_dim",
    64: "intermediate_size ffn_dim dim_ff dff decoder_ffn_dim encoder_ffn_dim d_ff n_inner "
    "ffn_hidden_size intermediate_size_mlp mlp_dim dense_intermediate_size feed_forward_size",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "shared_experts_intermediate_size shared_intermediate_size kv_lora_rank q_lora_rank "
    "laurel_rank mamba_d_state state_size o_lora_rank gated_norm_rank hc_lowrank patch_size "
    "ple_embed_dim moe_shared_expert_intermediate_size mamba_chunk_size chunk_size "
    "linear_head_dim index_topk",
    8: "head_dim attention_head_dim kv_channels qk_nope_head_dim v_head_dim linear_key_head_dim "
    "linear_value_head_dim index_head_dim swa_head_dim d_kv d_head mamba_d_head mamba_head_dim "
    "dim_head qk_rope_head_dim rotary_dim hidden_size_per_layer_input swa_v_head_dim d_rel "
    "mamba_headdim time_step_rank mamba_dt_rank",
    4: "num_attention_heads n_head num_heads n_heads decoder_attention_heads attention_heads "
    "encoder_attention_heads num_attention_head num_local_experts num_experts n_routed_experts "
    "moe_num_experts linear_num_value_heads linear_num_heads swa_num_attention_heads "
    "index_n_heads mamba_n_heads n_mamba_heads num_encoder_attention_heads o_groups "
    "num_decoder_attention_heads zero_expert_num vision_attention_heads",
    2: "num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k "
    "num_kv_heads kv_n_heads linear_num_key_heads swa_num_key_value_heads depth "
    "num_global_layers vision_layers",
    1: "n_group topk_group n_groups num_expert_group mamba_n_groups mamba_ngroups "
    "first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts",
    512: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length "
    "max_sequence_length max_target_positions",
    48: "image_size",
}  # fmt: skip
SMALL = {name: value for value, names in _BY_VALUE.items() for name in names.split()}
SMALL |= dict.fromkeys((*LAYER_NUMBERS, "encoder_layers", "num_encoder_layers"), LAYERS)


def tiny_config(model_type: str, vocabulary: int, **changes: Any) -> PretrainedConfig:
    """Make a config of a few thousand weights.

    Args:
        model_type: One of MODEL_TYPES.
        vocabulary: Rows of embeddings.
        changes: Fields of the config, in place of those made here.
    """
    kind = CONFIG_MAPPING[model_type]
    own = EXCEPTIONS.get(model_type, {})
    values = _merged(_shrunk(kind(**BEFORE.get(model_type, {})).to_dict(), vocabulary), own)
    return kind(**_merged(values, changes))


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for name, value in changes.items():
        inside = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = _merged(found[name], value) if inside else value
    return found


def _shrunk(values: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    found = {name: _small(name, value, vocabulary) for name, value in values.items()}
    layers = next((values[name] for name in LAYER_NUMBERS if values.get(name)), 0)
    if layers > LAYERS:
        found |= _few_layers(values, found, layers)
    if (
        values.get("kv_lora_rank") and "num_key_value_heads" in found
    ):  # latent attention has no groups
        found["num_key_value_heads"] = found["num_attention_heads"]
    if found.get("qk_head_dim"):
        found["qk_head_dim"] = found["qk_nope_head_dim"] + found["qk_rope_head_dim"]
    return found


def _few_layers(values: dict[str, Any], found: dict[str, Any], layers: int) -> dict[str, Any]:
    """What is said layer by layer, for one layer of each kind and more of the last."""
    lists = {n: v for n, v in found.items() if isinstance(v, list) and len(v) == layers}
    own = {int(at): value for at, value in (found.get("per_layer_config") or {}).items()}
    kinds = [str([v[at] for v in lists.values()] + [own.get(at)]) for at in range(layers)]
    first = sorted({kind: at for at, kind in reversed(list(enumerate(kinds)))}.values())
    kept = (first + [first[-1]] * LAYERS)[:LAYERS]
    few = {name: [value[at] for at in kept] for name, value in lists.items()}
    if own:
        few["per_layer_config"] = {i: own[at] for i, at in enumerate(kept) if at in own}
    return few


def _small(name: str, value: Any, vocabulary: int) -> Any:
    if isinstance(value, dict) and name not in ("id2label", "label2id"):
        return _shrunk(value, vocabulary)
    if name.startswith("vocab_size"):
        return vocabulary if value else value
    if name.endswith("_token_id") and isinstance(value, int) and value >= vocabulary:
        return 0
    if name in SMALL and isinstance(value, int) and not isinstance(value, bool):
        return min(value, SMALL[name])
    return value


MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
NO_INPUTS_BY_LAYER = {
    "model_type": "gemma4_text",
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
# Where the defaults themselves are refused.
BEFORE: dict[str, dict[str, Any]] = {"gemma4_assistant": {"text_config": NO_INPUTS_BY_LAYER}}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA_HEADS, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 300},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {**MAMBA_HEADS, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": 64,
    },
    "granitemoehybrid": {**MAMBA_HEADS, "layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "roc_bert": {"shape_vocab_size": 400, "pronunciation_vocab_size": 400},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
    },
}
