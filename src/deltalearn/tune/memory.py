"""Memory that tuning needs on each GPU, from a model's config and the settings alone.

The model is built on shapes without storage: its parameters are counted exactly, and what
autograd would keep for the backward is counted on its own forward, whatever the architecture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from deltalearn.errors import UserError
from deltalearn.lm.head import CHUNK_BYTES, CHUNK_BYTES_GPU, KEEP_BYTES
from deltalearn.lm.rows import head_width
from deltalearn.lm.torch_private import FakeTensorMode, storage_id
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune.lora import left_out, other_towers

GIB = 1 << 30
GPU_CONTEXT = GIB  # CUDA context, cuBLAS workspace, what the allocator cannot use: a rule of thumb
PROBE_TOKENS = (128, 256)  # their difference is what grows with the tokens, and nothing else
SHAPES_ONLY = "deltalearn_shapes"  # name of the attention below
BITS_BLOCK = 64  # weights that share a scale in bitsandbytes' 4-bit formats
SCALES_BLOCK = 256  # of those 8-bit scales, how many share a float32 one (double quantisation)
EIGHT_BIT_BLOCK = 256  # moments that share a float32 scale in bitsandbytes' 8-bit AdamW
EIGHT_BIT_LEAST = 4096  # tensors with fewer numbers keep float32 moments there


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model, counted on shapes without storage.

    Attributes:
        total: Distinct parameters, adapters included; a tied weight counts once.
        trainable: Shape of each trained tensor.
        matrices: Parameters of linear maps inside the layers, all experts included.
        active: The same, but of experts only those that one token passes.
        head_params: Parameters of the output matrix.
        largest_layer: Parameters of the largest layer.
        non_layer_params: Parameters outside layers: embeddings, head, final norm.
        layers: Number of layers.
        hidden: Width of the residual stream.
        residual_bytes: Bytes of one number of the residual stream.
        attention_width: Query heads times the width of a head.
        saved: Bytes a token that autograd keeps of the layers; None if the architecture cannot be
            run on shapes.
    """

    total: int
    trainable: tuple[tuple[int, ...], ...]
    matrices: int
    active: int
    head_params: int
    largest_layer: int
    non_layer_params: int
    layers: int
    hidden: int
    residual_bytes: int
    attention_width: int
    saved: int | None

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(map(math.prod, self.trainable))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU by part; `complete` is False if activations could not be counted."""

    parts: Mapping[str, int]
    complete: bool

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(self.parts.values())


def measure_model(
    config: PretrainedConfig, dtype: str, lora: LoraSpec | None = None, *, shard: bool = False
) -> ModelSize:
    """Count a model as tuning runs it; no weight is allocated.

    Full tuning computes with float32 weights under autocast; FSDP2 gathers them in `dtype`, and
    with adapters the base is frozen in it. Takes seconds for an 8B model. What an architecture
    does not let be counted is left out: `saved` is None then.

    Args:
        config: The model's config.
        dtype: Name of the run's precision, a torch dtype.
        lora: Adapters, if there are any.
        shard: Count as FSDP2 runs the model.

    Returns:
        Sizes of the model.
    """
    compute = getattr(torch, dtype)
    weight_dtype = torch.float32 if lora is None and not shard else compute
    autocast = compute if weight_dtype != compute or lora else None
    try:
        with FakeTensorMode(), _quiet_shapes():
            return _measured(config, weight_dtype, lora, autocast)
    except UserError:
        raise
    except Exception:  # of some architectures no weights can be drawn on shapes; counts do without
        with torch.device("meta"):
            return replace(_measured(config, weight_dtype, lora, autocast), saved=None)


@contextmanager
def _quiet_shapes() -> Iterator[None]:
    """Torch logs what fails on shapes as an error, which it is not to who runs a model."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _measured(
    config: PretrainedConfig,
    weight_dtype: torch.dtype,
    lora: LoraSpec | None,
    autocast: torch.dtype | None,
) -> ModelSize:
    model = AutoModelForCausalLM.from_config(config, dtype=weight_dtype).train()
    layers = _layers(model)
    matrices = [p for layer in layers for p in layer.parameters() if p.ndim >= 2]
    layer_sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    non_layer_params = sum(p.numel() for p in model.parameters()) - sum(layer_sizes)
    rows, width = model.get_input_embeddings().weight.shape
    head = model.get_output_embeddings()
    head_params = rows * width if head is None else head.weight.numel()
    if lora is not None:
        _add_adapters(model, lora)
    else:
        for tower in other_towers(model):
            model.get_submodule(tower).requires_grad_(False)
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    return ModelSize(
        total=sum(p.numel() for p in model.parameters()),
        trainable=tuple(tuple(p.shape) for p in model.parameters() if p.requires_grad),
        matrices=sum(p.numel() for p in matrices),
        active=sum(round(p.numel() * _share_of_experts(p, text)) for p in matrices),
        head_params=head_params,
        largest_layer=max(layer_sizes),
        non_layer_params=non_layer_params,
        layers=len(layers),
        hidden=getattr(text, "hidden_size", width),
        residual_bytes=weight_dtype.itemsize,
        attention_width=heads * head_width(config),
        saved=_saved_per_token(model, autocast),
    )


def _layers(model: nn.Module) -> nn.ModuleList | list[nn.Module]:
    """The decoder's layers: the largest list of modules in it; all as one if there is none."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return [model]
    return max(lists, key=lambda found: sum(p.numel() for p in found.parameters()))


def _share_of_experts(weight: Tensor, config: Any) -> float:
    """Share of a weight that one token uses: experts come stacked, as three dimensions."""
    used = getattr(config, "num_experts_per_tok", None)
    return used / weight.shape[0] if used and weight.ndim == 3 else 1.0


class _Adapted(nn.Module):
    """A frozen linear map with float32 adapters, as peft computes it; on shapes peft cannot run."""

    def __init__(self, base: nn.Linear | Conv1D, r: int) -> None:
        super().__init__()
        self.base = base
        rows, columns = base.weight.shape
        inside, outside = (rows, columns) if isinstance(base, Conv1D) else (columns, rows)
        self.down = nn.Linear(inside, r, bias=False)
        self.up = nn.Linear(r, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return (result + self.up(self.down(x.to(self.down.weight.dtype)))).to(result.dtype)


def _add_adapters(model: PreTrainedModel, lora: LoraSpec) -> None:
    """Freeze `model` and give the linear maps that `lora` names adapters, as peft selects them."""
    model.requires_grad_(False)
    head, excluded = model.get_output_embeddings(), set(left_out(model, lora))
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    for name, module in linear:
        if lora.targets == ("all-linear",):
            chosen = module is not head and name not in excluded
        else:
            chosen = any(f".{name}".endswith(f".{target}") for target in lora.targets)
        if chosen:
            model.set_submodule(name, _Adapted(module, lora.r))


def _attention(
    module, query, key, value, attention_mask=None, scaling=None, **_
) -> tuple[Tensor, None]:
    """Fused attention whatever the mask: what it keeps is what every fused back-end keeps."""
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2), None


AttentionInterface.register(SHAPES_ONLY, _attention)


def _saved_per_token(model: PreTrainedModel, autocast: torch.dtype | None) -> int | None:
    """Bytes a token that the layers keep for the backward, by two forwards on shapes."""
    low = autocast not in (None, torch.float32)
    mixed = torch.autocast("cpu", dtype=autocast) if low else nullcontext()
    kept = []
    try:
        model.set_attn_implementation(SHAPES_ONLY)
        for tokens in PROBE_TOKENS:
            with saved_bytes() as found, mixed:
                # A mask of four dimensions is what transformers hands on to the layers untouched.
                output = model.base_model(
                    input_ids=torch.zeros(1, tokens, dtype=torch.long),
                    attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
                    use_cache=False,
                )
            kept.append(sum(found.values()))
            del output
    except Exception:  # what depends on values (experts, say) fails on shapes in a dozen ways
        return None
    return (kept[1] - kept[0]) // (PROBE_TOKENS[1] - PROBE_TOKENS[0])


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Collect the bytes of every storage that autograd keeps for the backward, each once."""
    found: dict[int, int] = {}
    storages = []  # kept alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.append(storage)
        found[storage_id(storage)] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def estimate_memory(
    size: ModelSize,
    settings: TuneSpec,
    dtype: str,
    *,
    tokens: int,
    gpus: int = 1,
    shard: bool | None = None,
    device: str = "cuda",
) -> MemoryEstimate:
    """Estimate the memory of each GPU at the peak of a step.

    Weights, gradients and moments are exact; activations hold for fused attention; the rest are
    rules of thumb. All coexists at the start of the backward, so the sum is the peak.

    Args:
        size: The model, measured for the same `shard`.
        settings: The recipe's `tune` section.
        dtype: Name of the run's precision.
        tokens: Tokens of the largest forward.
        gpus: Number of processes.
        shard: FSDP2, which divides weights, gradients and moments; without it (DDP) every GPU holds
            all. Default: as the settings say.
        device: Type of the device, "cuda" or "cpu".

    Returns:
        Bytes on each GPU.
    """
    parts_of = gpus if (settings.shard if shard is None else shard) else 1
    low = getattr(torch, dtype).itemsize
    saved = size.saved or 0
    one_layer = saved // size.layers
    activations = saved * tokens
    if settings.gradient_checkpointing:  # a layer's input each, and one layer computed again
        activations = tokens * (size.layers * size.hidden * size.residual_bytes + one_layer)
    copies = 0
    if parts_of > 1:  # this layer and the next, gathered, and what is outside of layers
        copies = low * (2 * size.largest_layer + size.non_layer_params)
    elif settings.lora is None and low < 4:  # autocast keeps low copies until the backward is over
        copies = low * size.matrices
    return MemoryEstimate(
        {
            "weights": _weights(size, settings.lora, low) // parts_of,
            "gradients": 4 * size.trained // parts_of,
            "moments": _moments(size.trainable, settings.optimizer) // parts_of,
            "copies": copies,
            "activations": activations,
            "logits": _logits(size, tokens, low, device),
            "working": _working(size, settings, low, parts_of, tokens * one_layer, device),
        },
        complete=size.saved is not None,
    )


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
    return line
