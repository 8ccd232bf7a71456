"""The processes of a run: device and precision, DDP, FSDP2 or DeepSpeed around the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.load import Placement
from deltalearn.lm.transformers_private import layer_classes
from deltalearn.recipe import TuneSpec
from deltalearn.tune.checkpoint import trainable_state
from deltalearn.tune.optimizer import make_optimizer
from deltalearn.tune.student import trainable_parameters
from deltalearn.tune.trackers import tracker_arguments
from deltalearn.util.distributed import reset_precision

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(placement: Placement, settings: TuneSpec, out: Path) -> Accelerator:
    """Processes, device and precision, from the launcher's environment and the settings."""
    on_cpu = placement.device == "cpu"
    if on_cpu and placement.dtype == "float16":
        raise UserError("float16 needs a GPU: its gradients underflow; use float32 or bfloat16")
    reset_precision()
    accelerator = Accelerator(
        mixed_precision=PRECISION[placement.dtype],
        cpu=on_cpu,
        # Without it DDP holds a second copy of all gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        **tracker_arguments(settings, out),
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError(
            "the configuration of accelerate asks for FSDP, which deltalearn sets up itself: "
            "launch without it and give --shard (tune.shard)"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        set_up_deepspeed(accelerator, settings)
    elif settings.shard and accelerator.num_processes == 1:
        raise UserError(
            "shard splits the student over processes, and there is one; start several with "
            "`torchrun --nproc-per-node 8 -m deltalearn tune ...`, or leave shard out"
        )
    if settings.batch_size < accelerator.num_processes:
        raise UserError(
            f"batch_size {settings.batch_size} is less than one pair for each of "
            f"{accelerator.num_processes} processes"
        )
    return accelerator


def set_up_deepspeed(accelerator: Accelerator, settings: TuneSpec) -> None:
    """Fill in what a ZeRO configuration from the launcher leaves open; refuse what it cannot do."""
    for name, wanted in {"shard": settings.shard, "keep_best": settings.keep_best}.items():
        if wanted:
            raise UserError(f"{name} does not go with DeepSpeed, which holds the weights itself")
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    # Micro-batches differ in size and number from step to step; the loop says where a step ends.
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = settings.max_grad_norm


def prepare(accelerator: Accelerator, model: nn.Module, settings: TuneSpec) -> tuple[Any, Any]:
    """The model on its device, wrapped or sharded for several processes, with its optimiser."""
    if settings.shard:
        shard(model, accelerator)
        # Only now, so that it holds the shards. Preparing the model as well would add DDP.
        return model, accelerator.prepare(make_optimizer(model, settings, accelerator.device))
    model.to(accelerator.device)
    return accelerator.prepare(model, make_optimizer(model, settings, accelerator.device))


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Split weights, gradients and moments over all processes, layer by layer (FSDP2), in place.

    accelerate has FSDP on GPUs only, and its plugin sums gradients over ranks in the low precision;
    here they are summed in float32.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    base = base_model(model)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    # The frozen weights under adapters are in the low precision already, the adapters stay float32.
    gathered = low if base is model else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
    layers = layer_classes(base)
    for module in list(base.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, if there is one."""
    return getattr(model, "get_base_model", lambda: model)()


def whole_weights(accelerator: Accelerator, policy: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name, on the main process."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return trainable_state(accelerator.unwrap_model(policy))
    names = trainable_parameters(accelerator.unwrap_model(policy))
    return {n: w for n, w in accelerator.get_state_dict(policy).items() if n in names}
