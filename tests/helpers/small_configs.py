"""Configs of models that are small, and large enough for estimates to mean something."""

from __future__ import annotations

from transformers import GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config


def small_llama(layers: int = 3) -> LlamaConfig:
    return LlamaConfig(**_widths(layers))


def small_configs(layers: int = 3) -> dict[str, PretrainedConfig]:
    """Three families: a gated MLP, tied embeddings, and one of old."""
    return {
        "llama": small_llama(layers),
        "qwen2, tied": Qwen2Config(**_widths(layers), tie_word_embeddings=True),
        "gpt2": GPT2Config(
            vocab_size=512, n_embd=64, n_layer=layers, n_head=4,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        ),
    }  # fmt: skip


def _widths(layers: int) -> dict[str, int]:
    return {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
