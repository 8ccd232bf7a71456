"""Tune a student on prepared pairs: set everything up, run the loop, write the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.files import digest
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import Placement
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.scoring import Rows, choose_rows
from deltalearn.methods import METHODS
from deltalearn.progress import console
from deltalearn.tune.checkpoint import Checkpoints, trainable_state
from deltalearn.tune.examples import Examples
from deltalearn.tune.loop import Dev, Progress, Run
from deltalearn.tune.optimizer import make_optimizer
from deltalearn.tune.reference import ReferenceCache, reference_logprobs
from deltalearn.tune.schedule import total_steps
from deltalearn.tune.settings import FREE_TO_CHANGE, Settings
from deltalearn.tune.step import Objective
from deltalearn.tune.student import (
    load_student,
    reference_view,
    save_student,
    silence_dropout,
    trainable_parameters,
)
from deltalearn.tune.trackers import start_trackers, tracker_arguments

PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
SAMPLE = 256  # pairs looked at to choose the layout
Say = Callable[[str], None]


def tune(
    student: ModelFiles,
    examples: Examples,
    settings: Settings,
    seed: int,
    out: Path,
    *,
    reference: ReferenceCache,
    placement: Placement,
    title: str = "tune",
    dev: Dev | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Tune `student` on `examples`; write `out`/final (a Hugging Face directory) and log.jsonl.

    Continues from the newest checkpoint under `out`/checkpoints if there is one. Under a launcher
    (torchrun, accelerate launch) every process calls it with the same arguments. dev: scores of a
    model while tuning, the first of which decides keep_best and patience. say: gets lines on how
    the run is set up. Returns counts and the last logged metrics. Raises UserError if there is
    less than one batch of examples, if a checkpoint belongs to another run, or if the first loss
    is not what it must be.
    """
    train, held_out = split_held_out(examples, settings.eval_pairs or 0)
    steps = total_steps(len(train), settings.batch_size, settings.steps, settings.epochs)
    if steps == 0:
        raise UserError(
            f"{title}: {len(train)} usable pairs do not fill one batch of "
            f"{settings.batch_size}; give more prompts or a smaller tune.batch_size"
        )
    accelerator = make_accelerator(placement, settings, out)
    if not accelerator.is_main_process:
        say = _silent
    elif warning := small_beta(settings):
        console.print(f"warning: {warning}", markup=False)
    model = load_student(student, settings, placement, seed)
    silence_dropout(model)
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = choose_rows(
        _base(model),
        _sample(examples, settings),
        settings.layout,
        settings.attention,
        accelerator.device.type,
    )
    say(f"layout: {rows}")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        say("DeepSpeed holds the moments: no checkpoints, an interrupted run starts over")
    policy, optimizer = prepare(accelerator, model, settings)
    checkpoints = Checkpoints(
        out / "checkpoints",
        {
            "student": student.fingerprint,
            "examples": examples.digest,
            "settings": settings.model_dump(exclude=FREE_TO_CHANGE),
            "seed": seed,
            "precision": placement.dtype,
        },
        accelerator,
        policy,
        optimizer.optimizer,
    )
    # Scored before a checkpoint is restored: the reference is the untouched student (PEERS B21).
    references = None
    if METHODS[settings.method].reference:
        scope = reference_scope(student, settings, placement)
        model = accelerator.unwrap_model(policy)
        with reference_view(model):
            references = _references(policy, examples, reference, scope, rows, settings,
                                     accelerator)  # fmt: skip
    start, saved = checkpoints.restore()
    track, finish = start_trackers(
        accelerator, settings, out, {"title": title, "seed": seed}, start
    )
    run = Run(
        accelerator,
        policy,
        optimizer,
        Objective(examples, references, settings, rows, accelerator.device),
        train,
        held_out,
        settings,
        seed,
        steps,
        checkpoints,
        out,
        title,
        track,
        dev,
        Progress(**saved),
    )
    last = run.loop(start)
    if settings.keep_best and run.progress.best is not None:
        checkpoints.load_best()
    finish()
    weights = whole_weights(accelerator, policy)
    if accelerator.is_main_process:
        save_student(weights, student, settings, placement, out / "final")
    accelerator.wait_for_everyone()
    checkpoints.remove()
    result = {"steps": steps, "examples": len(train), "resumed_at": start, "rows": str(rows)}
    if run.evaluates:
        result |= {"held_out": len(held_out), "best_step": run.progress.best_step}
    return {**result, "last": last}


def small_beta(settings: Settings) -> str | None:
    """Why a beta kept from a loss on sums is (nearly) without effect on a normalised one (B16)."""
    beta = settings.effective_beta
    if settings.method != "dpo_norm" or beta is None or beta >= 1:
        return None
    return (
        f"beta {beta:g} is small for dpo_norm, whose margins are per token: the loss will hardly "
        "move from ln 2. The paper uses 5 to 10."
    )


def whole_weights(accelerator: Accelerator, policy: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name, on the main process."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return trainable_state(accelerator.unwrap_model(policy))
    names = trainable_parameters(accelerator.unwrap_model(policy))
    return {n: w for n, w in accelerator.get_state_dict(policy).items() if n in names}


def _silent(line: str) -> None:
    pass


def _base(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def make_accelerator(placement: Placement, settings: Settings, out: Path) -> Accelerator:
    """Processes, device and precision, from the launcher's environment and the settings."""
    on_cpu = placement.device == "cpu"
    if on_cpu and placement.dtype == "float16":
        raise UserError("float16 needs a GPU: its gradients underflow; use float32 or bfloat16")
    accelerator = Accelerator(
        mixed_precision=PRECISION[placement.dtype],
        cpu=on_cpu,
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


def set_up_deepspeed(accelerator: Accelerator, settings: Settings) -> None:
    """Fill in what a ZeRO configuration from the launcher leaves open; refuse what it cannot do."""
    for name, wanted in {"shard": settings.shard, "keep_best": settings.keep_best}.items():
        if wanted:
            raise UserError(f"{name} does not go with DeepSpeed, which holds the weights itself")
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    # Micro-batches differ in size and number from step to step; the loop says where a step ends.
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = settings.max_grad_norm


def prepare(accelerator: Accelerator, model: nn.Module, settings: Settings) -> tuple[Any, Any]:
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
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    base = _base(model)
    for module in list(base.modules()):
        if type(module).__name__ in (base._no_split_modules or ()):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reference_scope(student: ModelFiles, settings: Settings, placement: Placement) -> str:
    """What besides the ids decides a reference log-probability: weights and their precision."""
    bits = f":{settings.lora.bits}bit" if settings.lora and settings.lora.bits else ""
    return f"{student.fingerprint}:{placement.dtype}{bits}"


def split_held_out(examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (training pairs, held-out pairs), by a hash of the prompt.

    Pairs of one prompt are on the same side, so that nothing held out was seen. At least `count`
    pairs are held out; a few more if the last prompt has several.
    """
    if count == 0:
        return np.arange(len(examples)), np.arange(0)
    prompts = [digest(examples[i].prompt.tolist()) for i in range(len(examples))]
    order = sorted(range(len(examples)), key=lambda i: prompts[i])
    while count < len(order) and prompts[order[count]] == prompts[order[count - 1]]:
        count += 1
    return np.array(sorted(order[count:])), np.array(sorted(order[:count]))


def _sample(examples: Examples, settings: Settings) -> list[Tree]:
    """Some pairs spread over the data and the longest one, to choose a layout by."""
    total = examples.prompt_lengths + np.maximum(examples.chosen_lengths, examples.rejected_lengths)
    places = {int(total.argmax()), *range(0, len(examples), max(1, len(examples) // SAMPLE))}
    pairs = [examples[i] for i in sorted(places)]
    if settings.method == "sft":
        return [Tree(p.prompt, (p.chosen,)) for p in pairs]
    return [Tree(p.prompt, (p.chosen, p.rejected)) for p in pairs]


def _references(
    policy: nn.Module,
    examples: Examples,
    cache: ReferenceCache,
    scope: str,
    rows: Rows,
    settings: Settings,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor]:
    """Reference log-probabilities of both sides, from the cache or from the untrained model."""
    pairs = [examples[i] for i in range(len(examples))]
    answers = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    policy.eval()
    values = reference_logprobs(
        policy, answers, cache, scope, rows, settings.token_budget, accelerator
    )
    policy.train()
    chosen, rejected = torch.chunk(values, 2)
    return chosen, rejected
