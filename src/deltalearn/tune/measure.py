"""Sizes of a model, counted on shapes without storage: from its config alone, no weights.

Parameters are counted exactly, and what autograd would keep for the backward is counted on the
model's own forward, whatever the architecture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
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
from deltalearn.lm.rows import head_width
from deltalearn.lm.torch_private import FakeTensorMode, storage_id
from deltalearn.recipe import LoraSpec
from deltalearn.tune.lora import left_out, other_towers

PROBE_TOKENS = (128, 256)  # their difference is what grows with the tokens, and nothing else
SHAPES_ONLY = "deltalearn_shapes"  # name of the attention below


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
    layers = decoder_layers(model)
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


def decoder_layers(model: nn.Module) -> nn.ModuleList | list[nn.Module]:
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
