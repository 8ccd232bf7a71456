"""A GGUF file as an ordinary model directory: dequantised by transformers, then checked."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from deltalearn.errors import UserError, needs
from deltalearn.lm.gguf_config import ROPE_FACTORS, complete_config, llama3_scaling
from deltalearn.lm.gguf_header import (
    GgufHeader,
    read_gguf_header,
    write_without_vocabulary,
)
from deltalearn.lm.gguf_tokenizer import end_ids, gguf_tokenizer
from deltalearn.lm.load import loading_fault
from deltalearn.lm.tokenizer import PLAIN_CLASS
from deltalearn.lm.transformers_private import forget_stored_names
from deltalearn.util.failure import brief
from deltalearn.util.files import write_json
from deltalearn.util.progress import console

BARE = "bare.gguf"  # for the time of reading


def convert(place: str, file: Path, directory: Path) -> None:
    """Write the model of a GGUF file as config, float32 weights, tokenizer and chat template.

    In float32 nothing is lost of any kind of quantised number, whatever precision the model is
    loaded in later.

    Args:
        place: The model, for errors.
        file: The file.
        directory: Exists already, and is empty.

    Raises:
        UserError: If the file cannot be read, or if what transformers reads of it is not all of it.
    """
    with needs(f"{place}: is a GGUF file, for which the package gguf is needed", "gguf"):
        import gguf  # noqa: F401 (transformers imports it, too)
    header = read_gguf_header(place, file)
    tokenizer = gguf_tokenizer(place, header.metadata)
    console.print(
        f"{place}: a model directory with full weights is made of this GGUF file, once, in the "
        "cache",
        markup=False,
        soft_wrap=True,
    )
    bare = directory / BARE
    write_without_vocabulary(file, header, bare)
    config = _config(place, bare)
    in_config = complete_config(place, config, header)
    if ROPE_FACTORS in in_config:
        llama3_scaling(place, config.get_text_config(), _numbers(bare, ROPE_FACTORS))
    model = _model(place, bare, config)
    bare.unlink()
    _check_numbers(place, model, header, in_config)
    ends = end_ids(header.metadata)
    model.config.eos_token_id = ends[0] if ends else None
    model.generation_config = GenerationConfig(
        eos_token_id=ends or None,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
    tokenizer.save_pretrained(directory)
    settings = directory / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    write_json(settings, {**values, "tokenizer_class": PLAIN_CLASS})


def _named(file: Path) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def _config(place: str, file: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(**_named(file))
    except Exception as error:  # ValueError, KeyError, ... as the architecture has it
        raise _unreadable(place, error) from error
    return config


def _unreadable(place: str, error: Exception) -> UserError:
    return UserError(
        f"{place}: transformers {transformers.__version__} does not read this GGUF file "
        f"({brief(error)}); give the model that it was made from, or a server that runs the file"
    )


def _model(place: str, file: Path, config: Any) -> PreTrainedModel:
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the blocks of some architectures
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
    try:
        with redirect_stderr(io.StringIO()):  # a bar that cannot be turned off
            model, loading = AutoModelForCausalLM.from_pretrained(**_named(file), **options)
    except Exception as error:
        raise _unreadable(place, error) from error
    if fault := loading_fault(model, loading):
        raise UserError(f"{place}: the model does not load: {fault}")
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    for part in (model.config, model.config.get_text_config()):
        part.__dict__.pop("quantization_config", None)  # else it would refuse to be saved
        part.__dict__.pop("_model_name_or_path", None)
    forget_stored_names(model)
    return model


def _check_numbers(
    place: str, model: PreTrainedModel, header: GgufHeader, in_config: list[str]
) -> None:
    """transformers leaves out tensors for which it has no place, and says nothing."""
    left = {name: size for name, size in header.sizes.items() if name not in in_config}
    if strange := {p.dtype for p in model.parameters() if not p.dtype.is_floating_point}:
        raise UserError(f"{place}: transformers leaves its weights packed ({strange})")
    stored, read = sum(left.values()), sum(p.numel() for p in model.parameters())
    if stored != read:
        raise UserError(
            f"{place}: the file holds {stored:,} numbers and transformers "
            f"{transformers.__version__} reads {read:,} of a {type(model).__name__}, so it would "
            "be another model; give the model that it was made from"
        )


def _numbers(file: Path, name: str) -> list[float]:
    import gguf

    tensor = next(t for t in gguf.GGUFReader(str(file)).tensors if t.name == name)
    return [float(x) for x in tensor.data.reshape(-1)]
