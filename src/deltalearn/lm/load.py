"""Load tokenizers and models from located files, safely: no remote code, safetensors only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from deltalearn.errors import UserError
from deltalearn.lm.adapters import merged, remedy
from deltalearn.lm.architecture import require_causal
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.quantized import dequantizing, plain, stored_quantization
from deltalearn.lm.tokenizer import read_tokenizer
from deltalearn.lm.transformers_private import attention_name, let_fp8_load
from deltalearn.lm.turn import end_of_turn
from deltalearn.lm.weights import same_numbers
from deltalearn.records import Placement

transformers_logging.disable_progress_bar()


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Resolve "auto": the first GPU in bfloat16 if there is one, else the CPU in float32.

    A device that is named need not be here, since with Ray it is a worker's; `require_device` is
    called by what uses it.

    Args:
        device: "auto", or a torch device name.
        dtype: "auto", "float32", "bfloat16" or "float16".

    Returns:
        A placement without "auto".
    """
    if device == "auto":
        device = devices_here()[0]
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Placement(device, dtype)


def devices_here() -> list[str]:
    """List the devices on which torch can compute in this process, best first, the CPU last."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [*(name for name, usable in there.items() if usable), "cpu"]


def require_device(device: str) -> None:
    """Check that `device` is here: torch would give a traceback, accelerate would use the CPU.

    Raises:
        UserError: If it is not.
    """
    if device.partition(":")[0] not in (here := devices_here()):
        raise UserError(
            f"device {device}: torch {torch.__version__} finds none here, only {', '.join(here)}; "
            "use one of these, or auto"
        )


def device_name(placement: Placement) -> str:
    """The device as its maker calls it, or "cpu" or "mps"; UserError if it is not here."""
    require_device(placement.device)
    return torch.cuda.get_device_name() if placement.device == "cuda" else placement.device


def load_tokenizer(files: ModelFiles, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; its ids are those that its file says.

    Args:
        files: The model's files.
        chat: False allows a tokenizer without a chat template.

    Returns:
        The tokenizer.

    Raises:
        UserError: If it does not load, has no end-of-turn token or, for chat, no template.
    """
    tokenizer = read_tokenizer(files)
    if chat and not tokenizer.chat_template:
        raise UserError(
            f"{files.name}: the tokenizer has no chat template, so prompts cannot be rendered. "
            "Use an instruction-tuned model, or choose a template for it in the recipe: "
            "chat_template: chatml, raw (texts alone), or a file of Jinja, beside the model's path."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{files.name}: the tokenizer has no eos_token, so no answer could end")
    return tokenizer


def load_model(
    files: ModelFiles,
    placement: Placement,
    *,
    quantization: Any = None,
    dequantize: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode: the whole of its files, and nothing else.

    The sampling defaults a model ships with (top_k, repetition_penalty, ...) are dropped: what is
    sampled is what the recipe says. Its end-of-turn ids are kept. An adapter is merged in. A config
    that says that the head is tied to an embedding from which the files have it differ is put
    right: the head of the files counts.

    Args:
        files: The model's files, safetensors.
        placement: Device and precision.
        quantization: A config of transformers for weights in fewer bits, made on the device while
            loading.
        dequantize: Give weights that are stored in fewer bits in `placement.dtype`. Otherwise they
            are computed with as transformers does.

    Returns:
        The model on its device.

    Raises:
        UserError: If the files do not make a whole model, or if the device is not here.
    """
    require_device(placement.device)
    require_causal(files)
    stored = stored_quantization(files.directory)
    dequantize = stored is not None and (dequantize or files.adapter is not None)
    options: dict[str, Any] = {}
    if stored is not None and stored.method == "fp8":
        let_fp8_load()
    if quantization is not None or stored is not None:
        # Quantised weights are where they belong, and bitsandbytes refuses to move them.
        options["device_map"] = {"": placement.device}
    if quantization is not None:
        options["quantization_config"] = quantization
    elif stored is not None and dequantize:
        options |= dequantizing(files.name, stored)
    model = _whole(files, placement, options)
    keep_caps(model)
    if dequantize or (stored and not getattr(model, "is_quantized", False)):
        model = plain(model, getattr(torch, placement.dtype))
    if files.adapter is not None:
        model = merged(files.name, model, files.adapter)
    model.generation_config = without_sampling(model.generation_config)
    return (model if options else model.to(placement.device)).eval()


def _whole(files: ModelFiles, placement: Placement, options: dict[str, Any]) -> PreTrainedModel:
    """The model of these files, if they hold all its weights and no others."""
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            files.directory,
            dtype=getattr(torch, placement.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # of transformers and a dozen quantisers, each with its own kinds
        text = " ".join(str(error).split())
        raise UserError(f"{files.name}: the model does not load: {text}") from error
    if fault := loading_fault(model, loading):
        raise UserError(f"{files.name}: the model does not load: {fault}")
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if None not in ends and ends[0].weight is not ends[1].weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False  # else others would read the embedding as the head
    return model


def keep_caps(model: PreTrainedModel) -> None:
    """Let a model that caps its attention scores (Gemma 2) compute them by a function that does.

    transformers before 5.21 takes torch's own attention, which leaves the cap out without a word.

    Args:
        model: As it was loaded; its attention may be changed.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and attention_name(model) == "sdpa":
        model.set_attn_implementation("eager")


def loading_fault(model: PreTrainedModel, loading: Mapping[str, Any]) -> str | None:
    """Say what is wrong with files, by what transformers reports of loading them.

    Args:
        model: What they gave.
        loading: The report, of `output_loading_info`.

    Returns:
        The end of a sentence, or None if nothing is wrong.
    """
    if missing := sorted(loading["missing_keys"]):  # tied weights are not among them
        return (
            f"its files lack {len(missing)} weights, {missing[0]} first; transformers would draw "
            "them at random"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        return f"{len(mismatched)} of its weights have another shape, {mismatched[0][0]} first"
    if unexpected := sorted(loading["unexpected_keys"]):
        return (
            f"its files hold {len(unexpected)} weights for which {type(model).__name__} has no "
            f"place, {unexpected[0]} first; transformers would leave them out"
        )
    return "; ".join(loading.get("error_msgs", ())) or None


def without_sampling(shipped: GenerationConfig) -> GenerationConfig:
    """The generation config of a model without its sampling defaults, which `generate` merges in.

    Args:
        shipped: As its files have it.

    Returns:
        Its end-of-turn ids and BOS alone.
    """
    return GenerationConfig(eos_token_id=shipped.eos_token_id, bos_token_id=shipped.bos_token_id)


def check_files(files: ModelFiles, reader: str) -> None:
    """Make sure of files that are loaded by another library: a whole model, without an adapter.

    No numbers are read but those of a head and an embedding of which the config says that they are
    the same. How weights in fewer bits fit is left to `reader`.

    Args:
        files: The model's files.
        reader: Who will load them, for errors.

    Raises:
        UserError: If `reader` would load something else than what the files say.
    """
    if files.adapter is not None:
        raise UserError(f"{files.name}: is an adapter, which {reader} is not given. {remedy()}")
    if stored_quantization(files.directory) is not None:
        return
    model = _whole(files, Placement("cpu", "bfloat16"), {"device_map": "meta"})
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if None in ends or not _tied_by_config(files):
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    keys = [names.get(id(end.weight), "") for end in ends]
    if keys[0] != keys[1] and not same_numbers(files.name, files.directory, *keys):
        raise UserError(
            f"{files.name}: its config ties the head to the embedding, from which it differs in "
            f"the files, and {reader} would believe the config; set tie_word_embeddings to false "
            "in config.json"
        )


def _tied_by_config(files: ModelFiles) -> bool:
    config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False)
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def context_length(model: PreTrainedModel) -> int | None:
    """Most positions the model was made for, or None if its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends an answer: the tokenizer's and those of the generation config."""
    return _ends(model.generation_config.eos_token_id, tokenizer)


def end_ids_of_files(files: ModelFiles, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Like `end_ids`, for a model that is not loaded.

    Args:
        files: The model's files.
        tokenizer: Its tokenizer.

    Returns:
        Every id that ends an answer.
    """
    try:
        configured = GenerationConfig.from_pretrained(files.directory).eos_token_id
    except OSError:  # without one, transformers takes the model's config
        configured = AutoConfig.from_pretrained(files.directory).eos_token_id
    return _ends(configured, tokenizer)


def _ends(configured: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    if configured is None:
        configured = []
    elif isinstance(configured, int):
        configured = [configured]
    # What the template ends a turn with is what tuning teaches to stop at.
    return frozenset([tokenizer.eos_token_id, end_of_turn(tokenizer), *configured])
