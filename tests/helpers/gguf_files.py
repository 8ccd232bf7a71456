"""GGUF files of tiny models, written by the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}  # by model type


def tiny(kind: str, tokenizer: PreTrainedTokenizerFast, path: Path, **changes: Any) -> Path:
    """Write an ordinary directory of a random model of three layers.

    Args:
        kind: One of ARCHITECTURES.
        tokenizer: Decides the vocabulary.
        path: The directory.
        changes: Of the config.
    """
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "initializer_range": 0.2, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "gemma3_text":
        values |= {"head_dim": 32, "sliding_window": 8}
    config = CONFIG_MAPPING[kind](**{**values, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.copy_(torch.linspace(0.5, 1.5, weight.numel()))  # else they would be equal
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def gguf_of(directory: Path, file: Path, quantised: str = "F32", **metadata: Any) -> Path:
    """Write the GGUF file of an ordinary directory of one of ARCHITECTURES.

    Args:
        directory: Of `tiny`.
        file: Written anew.
        quantised: Kind of its matrices, as gguf calls it.
        metadata: Further settings, or others; None leaves one out. `__` stands for a dot, and the
            architecture is put before what begins with `__`.
    """
    gguf = pytest.importorskip("gguf")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    architecture = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(file, architecture)
    given = {k.replace("__", "."): v for k, v in metadata.items()}
    given = {f"{architecture}{k}" if k.startswith(".") else k: v for k, v in given.items()}
    values = {**_settings(model, architecture), **_tokenizer(directory), **given}
    for key, value in values.items():
        if value is not None:
            writer.add_key_value(key, value, _kind(gguf, value), _inner(gguf, value))
    for name, weight in _tensors(gguf, model, architecture):
        matrix = weight.ndim > 1
        kind = gguf.GGMLQuantizationType[quantised if matrix else "F32"]
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _kind(gguf: Any, value: Any) -> Any:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY
    return {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}[
        type(value)
    ]


def _inner(gguf: Any, value: Any) -> Any:
    if not isinstance(value, list):
        return None
    inner = _kind(gguf, value[0])
    return gguf.GGUFValueType.INT32 if inner == gguf.GGUFValueType.UINT32 else inner


def _settings(model: PreTrainedModel, architecture: str) -> dict[str, Any]:
    config = model.config
    rope = config.rope_parameters
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if architecture == "llama":
        values["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    if architecture == "gemma3":
        values["attention.key_length"] = values["attention.value_length"] = config.head_dim
        values["attention.sliding_window"] = config.sliding_window
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _tokenizer(directory: Path) -> dict[str, Any]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    file = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for token in file["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [by_id[i] for i in range(len(by_id))],
        "token_type": [kinds[i] for i in range(len(by_id))],
        "merges": [" ".join(pair) for pair in file["model"]["merges"]],
        "eos_token_id": tokenizer.eos_token_id,
        "padding_token_id": tokenizer.pad_token_id,
        "add_bos_token": False,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return {**found, "tokenizer.chat_template": tokenizer.chat_template}


def _tensors(gguf: Any, model: PreTrainedModel, architecture: str) -> Any:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():  # tied ones once
        weight = parameter.detach().numpy()
        for part, number in heads.items() if architecture == "llama" else ():
            if part in name:  # llama.cpp rotates pairs that are neighbours
                halves = weight.reshape(number, 2, -1, *weight.shape[1:])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            weight = weight + np.float32(1)
        yield names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(weight)


def config_of(directory: Path) -> Any:
    """The config of a directory, as transformers reads it."""
    return AutoConfig.from_pretrained(directory)
