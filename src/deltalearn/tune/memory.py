"""Memory that tuning needs on each GPU, from a model's sizes and the settings alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from deltalearn.lm.head import CHUNK_BYTES, CHUNK_BYTES_GPU, KEEP_BYTES
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune.checkpointing import layers_in
from deltalearn.tune.measure import ModelSize

GIB = 1 << 30
GPU_CONTEXT = GIB  # CUDA context, cuBLAS workspace, what the allocator cannot use: a rule of thumb
BITS_BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit formats
SCALES_BLOCK = 256  # of those 8-bit scales, how many share a float32 one (double quantisation)
EIGHT_BIT_BLOCK = 256  # moments that share a float32 scale in bitsandbytes' 8-bit AdamW
ASSUMED_GPU = 80_000_000_000  # bytes of an A100 or H100
FILLED = 0.9  # of the room: estimates may be a tenth off
PARTS = ("weights", "gradients", "moments", "copies", "activations", "logits", "working")
EIGHT_BIT_LEAST = 4096  # tensors with fewer numbers keep float32 moments there


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU by part, and how many layers must be computed again for it.

    Attributes:
        parts: Bytes by part.
        complete: False if activations could not be counted.
        again: Layers under gradient checkpointing.
        layers: Layers of the model.
    """

    parts: Mapping[str, int]
    complete: bool
    again: int = 0
    layers: int = 0

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(self.parts.values())


def estimate_memory(
    size: ModelSize,
    settings: TuneSpec,
    dtype: str,
    *,
    tokens: int,
    gpus: int = 1,
    shard: bool | None = None,
    device: str = "cuda",
    room: int | None = None,
) -> MemoryEstimate:
    """Estimate the memory of each GPU at the peak of a step.

    Weights, gradients and moments are exact; activations hold for fused attention; the rest are
    rules of thumb. All coexists at the start of the backward, so the sum is the peak.
    `gradient_checkpointing: auto` takes as few layers as the room allows, and all of them if it is
    not known, or if the activations cannot be counted.

    Args:
        size: The model, measured for the same `shard`.
        settings: The recipe's `tune` section.
        dtype: Name of the run's precision.
        tokens: Tokens of the largest forward.
        gpus: Number of processes.
        shard: FSDP2, which divides weights, gradients and moments; without it (DDP) every GPU holds
            all. Default: as the settings say.
        device: Type of the device, "cuda" or "cpu".
        room: Bytes that there are on each device.

    Returns:
        Bytes on each GPU.
    """
    share, layers = settings.gradient_checkpointing, size.layers
    if not isinstance(share, str):
        counts: Sequence[int] = [layers_in(share, layers)]
    elif size.saved is None or room is None:
        counts = [layers]
    else:
        counts = range(layers + 1)
    fixed = _fixed(size, settings, dtype, tokens, gpus, shard, device)
    for again in counts:
        parts = {**fixed, "activations": _activations(size, tokens, again)}
        if room is not None and sum(parts.values()) <= FILLED * room:
            break
    ordered = {name: parts[name] for name in PARTS}
    return MemoryEstimate(ordered, size.saved is not None, again, layers)


def _activations(size: ModelSize, tokens: int, again: int) -> int:
    """Of `again` layers the input each; the others whole, which are freed before one is whole."""
    if not again:
        return tokens * (size.saved or 0)
    one_layer = (size.saved or 0) // size.layers
    whole = max(1, size.layers - again)
    return tokens * (again * size.hidden * size.residual_bytes + whole * one_layer)


def _fixed(
    size: ModelSize,
    settings: TuneSpec,
    dtype: str,
    tokens: int,
    gpus: int,
    shard: bool | None,
    device: str,
) -> dict[str, int]:
    """All parts but the activations of the layers."""
    parts_of = gpus if (settings.shard if shard is None else shard) else 1
    low = getattr(torch, dtype).itemsize
    copies = 0
    if parts_of > 1:  # this layer and the next, gathered, and what is outside of layers
        copies = low * (2 * size.largest_layer + size.non_layer_params)
    elif settings.lora is None and low < 4:  # autocast keeps low copies until the backward is over
        copies = low * size.matrices
    one_layer = (size.saved or 0) // size.layers
    return {
        "weights": _weights(size, settings.lora, low) // parts_of,
        "gradients": 4 * size.trained // parts_of,
        "moments": _moments(size.trainable, settings.optimizer) // parts_of,
        "copies": copies,
        "logits": _logits(size, tokens, low, device),
        "working": _working(size, settings, low, parts_of, tokens * one_layer, device),
    }


def _weights(size: ModelSize, lora: LoraSpec | None, low: int) -> int:
    """Float32 if all are trained; with adapters (float32) the base in the run's own precision."""
    if lora is None:
        return 4 * size.total
    base = size.total - size.trained
    if lora.bits is None:
        return low * base + 4 * size.trained
    quantised = size.matrices * lora.bits // 8
    scales = size.matrices // BITS_BLOCK + 4 * size.matrices // BITS_BLOCK // SCALES_BLOCK
    return quantised + scales + low * (base - size.matrices) + 4 * size.trained


def _moments(shapes: Sequence[tuple[int, ...]], optimizer: str) -> int:
    """Bytes of optimiser state, but for the scalar that counts steps."""
    sizes = [math.prod(shape) for shape in shapes]
    if optimizer == "adamw":
        return 8 * sum(sizes)
    if optimizer == "adamw_8bit":
        blocks = [2 * n + 8 * math.ceil(n / EIGHT_BIT_BLOCK) for n in sizes]
        return sum(8 * n if n < EIGHT_BIT_LEAST else b for n, b in zip(sizes, blocks, strict=True))
    # Adafactor keeps a number a row and a number a column of a matrix (Shazeer and Stern 2018).
    factored = [n // s[-1] + n // s[-2] for n, s in zip(sizes, shapes, strict=True) if len(s) > 1]
    whole = [n for n, s in zip(sizes, shapes, strict=True) if len(s) < 2]
    return 4 * (sum(factored) + sum(whole))


def _logits(size: ModelSize, tokens: int, low: int, device: str) -> int:
    """Of the chunked head: kept probabilities, a chunk in two precisions, the head's input."""
    logits = tokens * (size.head_params // size.hidden)
    chunk = CHUNK_BYTES if device == "cpu" else CHUNK_BYTES_GPU
    kept = min(low * logits, KEEP_BYTES)
    return kept + 2 * min(chunk, 4 * logits) + 2 * 4 * tokens * size.hidden


def _working(
    size: ModelSize, settings: TuneSpec, low: int, parts_of: int, one_layer: int, device: str
) -> int:
    """What lives for a moment: gradients not yet added up, and what a GPU takes by itself."""
    working = one_layer + (0 if device == "cpu" else GPU_CONTEXT)
    if parts_of == 1:  # the head's low copy and its gradient
        return working + size.head_params * (low + (4 if settings.lora is None else 0))
    if settings.lora is None:  # gradients of gathered weights, in both precisions to be split
        working += (low + 4) * max(size.largest_layer, size.non_layer_params)
    return working


def format_estimate(estimate: MemoryEstimate) -> str:
    """One line: the total and its parts, in GiB."""
    parts = [f"{name} {value / GIB:.2f}" for name, value in estimate.parts.items() if value]
    line = f"memory estimated per device: {estimate.total / GIB:.2f} GiB ({', '.join(parts)})"
    if not estimate.complete:
        line += "; activations of this architecture are not included"
    if estimate.again:
        line += f"; {estimate.again} of {estimate.layers} layers are computed again"
    return line


def room_on(device: torch.device) -> int:
    """Bytes that this process could still take on a device.

    On a GPU without what others hold there; on a CPU what the system says is to be had.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def room_expected(device: str) -> tuple[int, str]:
    """(bytes on each device, whose they are) for an estimate of a run that may be elsewhere.

    Those of the machine here, if it has such a device; else of the usual data-centre GPU.
    """
    if device == "cpu":
        return psutil.virtual_memory().total, "all of this machine's"
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1], "of the GPU here"
    return ASSUMED_GPU, "ASSUMED, there is no GPU here"
