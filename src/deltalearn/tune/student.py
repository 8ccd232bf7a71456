"""The student: loaded for tuning, seen as it was before, written as an ordinary model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from deltalearn.errors import needs
from deltalearn.lm.load import Placement, load_model, require_device
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.quantized import stored_dtype, trained_as
from deltalearn.lm.write import NOTHING, copy_tokenizer, write_model
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune.lora import adapted, other_towers
from deltalearn.util.files import replacing_directory, write_text

CARD = "README.md"

if TYPE_CHECKING:
    from peft import PeftModel


def load_student(
    files: ModelFiles, settings: TuneSpec, placement: Placement, seed: int
) -> PreTrainedModel | PeftModel:
    """Load the student in evaluation mode, with what is to be trained requiring gradients.

    Without `settings.lora` all weights train and are float32 on the CPU, whatever
    `placement.dtype`: that is what mixed precision computes in. The parts of a multimodal model
    that a text does not pass stay as they are. With it the weights are frozen in
    `placement.dtype`, and float32 adapters (Hu et al. 2021) train beside them. lora.bits 4 keeps
    the frozen weights as double-quantised nf4 (QLoRA, Dettmers et al. 2023), put on
    `placement.device` at once, since quantising happens there.

    Args:
        files: The student's files.
        settings: The recipe's `tune` section.
        placement: Device and precision.
        seed: Of the adapters' first weights.

    Returns:
        The model, or peft's wrapper of it.

    Raises:
        UserError: If the files do not make a whole model, if `placement.device` is not here, if
            peft or bitsandbytes is missing, or if an entry of lora.targets names no layer.
    """
    require_device(placement.device)
    lora = settings.lora
    trained_as(files, lora.bits if lora else None)
    if lora is None:
        return _without_towers(load_model(files, Placement("cpu", "float32"), dequantize=True))
    if lora.bits is None:
        base = load_model(files, Placement("cpu", placement.dtype), dequantize=True)
        return adapted(base, lora, files, seed)
    needed = f"tune.lora.bits {lora.bits} needs bitsandbytes"
    with needs(needed, "qlora", ", or leave lora.bits out"):
        import bitsandbytes  # noqa: F401
    quantized = Placement(_this_device(placement.device), placement.dtype)
    base = load_model(files, quantized, quantization=_quantization(lora, placement))
    for module in base.modules():
        # On processors with AVX-512 BF16 bitsandbytes would repack weights at the first forward
        # without gradients, for a kernel through which none flow afterwards.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return adapted(base, lora, files, seed)


def _this_device(device: str) -> str:
    """The device by number, by which accelerate checks where a quantised model is."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def _quantization(lora: LoraSpec, placement: Placement) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, placement.dtype),
    )


def _without_towers(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze what a text does not pass, in place: it would get no gradient."""
    for tower in other_towers(model):
        model.get_submodule(tower).requires_grad_(False)
    return model


def silence_dropout(model: nn.Module) -> None:
    """Switch off, in place, what the model itself does at random while it is in train mode.

    Train mode is needed for gradient checkpointing, but with dropout the first loss is not ln 2
    and the student is not compared with itself. LoRA's own dropout stays: adapters start at zero,
    so it changes nothing at first.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Some architectures read the number from the config at every forward.
        for owner in (module, getattr(module, "config", None)):
            for key, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, float) and ("drop" in key or "jitter" in key):
                    setattr(owner, key, 0.0)


@contextmanager
def reference_view(model: nn.Module) -> Iterator[None]:
    """Within the block, `model` computes as the untouched student: adapters, if any, are off.

    A student that trains all its weights is its own reference only before the first step.
    """
    with getattr(model, "disable_adapter", nullcontext)():
        yield


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Collect the trained parameters by name, in the model's own order; a tied weight occurs once.

    Names are those of the bare model, also if it is wrapped in DistributedDataParallel.
    """
    return {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_student(
    weights: Mapping[str, Tensor],
    files: ModelFiles,
    settings: TuneSpec,
    placement: Placement,
    out: Path,
    template: Mapping[str, Any] = NOTHING,
    card: str = "",
) -> None:
    """Write the tuned student as an ordinary Hugging Face directory, complete or not at all.

    The student is read anew from `files` and the weights are laid over it, so nothing of how it was
    trained (sharding, quantising, attention) stays in it. It is stored as safetensors in
    `written_dtype`, with the side files that it came with (`lm.write`). To be called by one
    process; it needs host memory for the model in that dtype.

    With LoRA the adapter goes to `adapter` beside `out`, in peft's format and float32, and `out` is
    the model with the adapter merged in. After QLoRA it is merged into the weights as they were
    before quantising, for which it was not trained: load the adapter on the quantised student to
    have exactly what was tuned.

    Args:
        weights: Whole tensors under the names of `trainable_parameters`.
        files: The student's files.
        settings: The recipe's `tune` section.
        placement: Gives the precision of the run.
        out: The directory; replaced if it exists.
        template: Arguments of the chat template that it was trained with, kept as defaults.
        card: Text of its README.md, and of the adapter's; empty for none.
    """
    dtype = written_dtype(files, settings, placement.dtype)
    model = load_model(files, Placement("cpu", dtype), dequantize=True)
    _without_towers(model)
    if settings.lora is not None:
        model = adapted(model, settings.lora, files, seed=0)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(weights[name])
    if settings.lora is not None:
        with replacing_directory(out.with_name("adapter")) as directory:
            # True or "auto" would ask the hub what the student's vocabulary is.
            model.save_pretrained(directory, save_embedding_layers=False)
            copy_tokenizer(files, directory, template)
            _write_card(card, directory)
        model = model.merge_and_unload()
    with replacing_directory(out) as directory:
        write_model(model, files, directory, template)
        _write_card(card, directory)


def _write_card(card: str, directory: Path) -> None:
    """In place of the one that peft writes, which says nothing."""
    (directory / CARD).unlink(missing_ok=True)
    if card:
        write_text(directory / CARD, card)


def written_dtype(files: ModelFiles, settings: TuneSpec, dtype: str) -> str:
    """Name the precision of the weights that a run leaves.

    Merged adapters change a model that is in a precision of its own already: it keeps that, and is
    rounded once. The adapter by itself is float32 whatever it was trained beside.

    Args:
        files: The student's.
        settings: The recipe's `tune` section.
        dtype: Of the run, in which weights that are all trained are written.
    """
    return (stored_dtype(files.directory) or dtype) if settings.lora is not None else dtype
