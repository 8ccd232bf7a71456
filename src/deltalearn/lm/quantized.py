"""Models whose files hold weights in fewer bits: what can be made of each kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deltalearn.errors import UserError
from deltalearn.lm.adapters import remedy
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.transformers_private import forget_stored_names, stays_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Methods whose weights transformers gives back in full, with the class that asks for it and the
# package that is needed; bitsandbytes is dequantised after loading.
DEQUANTIZED: dict[str, tuple[str | None, str | None]] = {
    "bitsandbytes": (None, "bitsandbytes"),
    "mxfp4": ("Mxfp4Config", None),
    "fp8": ("FineGrainedFP8Config", None),
    "compressed-tensors": ("CompressedTensorsConfig", "compressed_tensors"),
}


@dataclass(frozen=True)
class StoredQuantization:
    """The kind of weights in fewer bits that a model is stored in, as its config says.

    Attributes:
        method: As transformers calls it.
        bits: 4 or 8 of bitsandbytes; None of the others.
    """

    method: str
    bits: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.bits} bit" if self.bits else self.method


def _said(directory: Path, *keys: str) -> Any:
    """What a model's config, or that of its text model, says under one of some keys."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        parts = (config, config.get("text_config") or {})
        return next((part[key] for part in parts for key in keys if part.get(key)), None)
    except (OSError, ValueError, AttributeError):
        return None  # whoever loads it says what is wrong


def stored_dtype(directory: Path) -> str | None:
    """Read from a model's config in which of the precisions that we write it is meant to be."""
    found = str(_said(directory, "dtype", "torch_dtype")).removeprefix("torch.")
    return found if found in ("float32", "bfloat16", "float16") else None


def stored_quantization(directory: Path) -> StoredQuantization | None:
    """Read from a model's config how its weights are stored; None if they are ordinary ones."""
    found = _said(directory, "quantization_config")
    if not isinstance(found, dict):
        return None
    method = str(found.get("quant_method") or "")
    if found.get("load_in_8bit") or found.get("load_in_4bit") or method == "bitsandbytes":
        return StoredQuantization("bitsandbytes", 8 if found.get("load_in_8bit") else 4)
    return StoredQuantization(method or "an unnamed method")


def trained_as(files: ModelFiles, bits: int | None) -> str | None:
    """Decide how a student that is stored in fewer bits is trained, before anything is loaded.

    Args:
        files: The student's files.
        bits: tune.lora.bits.

    Returns:
        What is done with its weights, in words; None for ordinary weights.

    Raises:
        UserError: If it can be trained in no way, or not with `bits`.
    """
    if bits and files.adapter is not None:
        raise UserError(
            f"{files.name}: is an adapter, which is merged into its base in full precision, so "
            f"tune.lora.bits {bits} cannot be had; leave lora.bits out. {remedy()}"
        )
    stored = stored_quantization(files.directory)
    if stored is None:
        return None
    if bits is None:
        dequantizing(files.name, stored)
        return f"its weights, stored as {stored}, are given back in full; so is the tuned model"
    if (stored.method, stored.bits) == ("bitsandbytes", bits):
        return f"its weights are kept as they are stored, {stored}, under the adapters"
    raise UserError(
        f"{files.name}: its weights are stored in fewer bits already ({stored}), so "
        f"tune.lora.bits {bits} has no effect; leave lora.bits out, or give the model from which "
        "it was made"
    )


def dequantizing(name: str, stored: StoredQuantization) -> dict[str, Any]:
    """Make the options of `from_pretrained` with which weights in fewer bits become ordinary ones.

    Args:
        name: The model, for errors.
        stored: How it is stored.

    Returns:
        The options; empty where it is done after loading.

    Raises:
        UserError: If these cannot become so, or if a package is missing.
    """
    if stored.method not in DEQUANTIZED:
        raise UserError(
            f"{name}: its weights are stored in fewer bits ({stored}), which cannot be trained nor "
            "given back in full; give the model from which it was made as the student (its card "
            f"names it), or one in {', '.join(DEQUANTIZED)}"
        )
    asking, package = DEQUANTIZED[stored.method]
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"{name}: its weights are stored in fewer bits ({stored}), for which a package is "
            f"needed; run `pip install {package.replace('_', '-')}`, or give the model from which "
            "it was made"
        )
    if asking is None:
        return {}
    import transformers

    try:
        return {"quantization_config": getattr(transformers, asking)(dequantize=True)}
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{name}: its weights are stored in fewer bits ({stored}), which transformers "
            f"{transformers.__version__} does not give back in full; run `pip install -U "
            "transformers`, or give the model from which it was made"
        ) from error


def plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model that was read from fewer bits an ordinary one, in place.

    Args:
        model: As `from_pretrained` gave it.
        dtype: Of its weights.

    Returns:
        A model without a trace of how it was stored.
    """
    if getattr(model, "is_quantized", False):
        model = model.dequantize(dtype)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(name, None)
    forget_stored_names(model)
    # transformers leaves what was not in fewer bits as it was stored. Buffers are not touched:
    # rotary frequencies stay float32.
    for key, parameter in model.named_parameters():
        kept = stays_float32(model, key, dtype)
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    return model.requires_grad_()
