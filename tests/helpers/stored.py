"""Tiny models as other people store them: in fewer bits, as adapters, in shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values = {k: v for k, v in {**values, **changes}.items() if v is not None}
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_weights(model: Path, change: Any) -> None:
    """Let `change` alter the dictionary of tensors of a model in one file."""
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def wide_llama(path: Path, tokenizer: Any, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random 2-layer Llama whose widths suit blocks of 64 and 128."""
    config = LlamaConfig(
        vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        tie_word_embeddings=False, initializer_range=0.1, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _write(config, path, tokenizer, dtype)


def _write(config: Any, path: Path, tokenizer: Any, dtype: torch.dtype) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def bitsandbytes(path: Path, tokenizer: Any, bits: int) -> Path:
    """`wide_llama` in 4 or 8 bits, as transformers writes it."""
    from transformers import BitsAndBytesConfig

    source = wide_llama(path.with_name(f"{path.name}-source"), tokenizer)
    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def fp8(path: Path, tokenizer: Any, block: int = 128) -> Path:
    """`wide_llama` in float8 with a scale for each block, as DeepSeek and Qwen ship theirs."""
    wide_llama(path, tokenizer)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            whole = tensors[name].float()
            rows, columns = (size // block or 1 for size in whole.shape)
            blocks = whole.reshape(rows, whole.shape[0] // rows, columns, -1)
            scales = blocks.abs().amax((1, 3)) / 448
            small = (blocks / scales[:, None, :, None]).reshape(whole.shape)
            tensors[name] = small.to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scales

    edit_weights(path, change)
    quantization = {
        "quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic",
        "fmt": "e4m3",
    }  # fmt: skip
    edit_json(path / "config.json", quantization_config=quantization)
    return path


def mxfp4(path: Path, tokenizer: Any) -> Path:
    """A random GPT-OSS whose experts are in 4 bits, as OpenAI ships its own."""
    config = GptOssConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=96, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    _write(config, path, tokenizer, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = tensors.pop(name).shape
            shape = (experts, rows, columns // 32, 16)
            blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.full(shape[:3], 122, dtype=torch.uint8)

    edit_weights(path, change)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "lm_head"]}
    edit_json(path / "config.json", quantization_config=quantization)
    return path


def adapter(base: Path, path: Path, **settings: Any) -> Path:
    """A LoRA adapter of `base` whose weights change what it says."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


def sharded(model: Path, path: Path) -> Path:
    """The same model in several files, named by an index."""
    shutil.copytree(model, path, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(path, max_shard_size="20KB")
    return path
