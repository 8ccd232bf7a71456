"""Tune a student on prepared pairs: set everything up, run the loop, write the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import AutoConfig

from deltalearn.lm.forward import RowLayout
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import Placement
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.rows import choose_rows, require_gradients
from deltalearn.lm.write import NOTHING, check_written, rehearse
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.recipe.methods import FREE_TO_CHANGE, METHODS
from deltalearn.tune.card import model_card
from deltalearn.tune.checkpoint import Checkpoints
from deltalearn.tune.checkpointing import checkpoint_layers
from deltalearn.tune.compiled import compile_layers
from deltalearn.tune.dataset import Examples
from deltalearn.tune.distributed import base_model, make_accelerator, prepare, whole_weights
from deltalearn.tune.fit import steps_on
from deltalearn.tune.float8 import require_float8, use_float8
from deltalearn.tune.kernels import fuse_layers
from deltalearn.tune.loop import Dev, Progress, Run
from deltalearn.tune.lora import adapters_line
from deltalearn.tune.measure import ModelSize, measure_model
from deltalearn.tune.memory import MemoryEstimate, estimate_memory, format_estimate, room_on
from deltalearn.tune.reference import ReferenceCache, reference_logprobs
from deltalearn.tune.step import Objective
from deltalearn.tune.student import (
    load_student,
    reference_view,
    save_student,
    silence_dropout,
    written_dtype,
)
from deltalearn.tune.trackers import start_trackers
from deltalearn.util.failure import informed
from deltalearn.util.files import digest
from deltalearn.util.progress import console

SAMPLE = 256  # pairs looked at to choose the layout
Say = Callable[[str], None]


def tune(
    student: ModelFiles,
    examples: Examples,
    settings: TuneSpec,
    seed: int,
    out: Path,
    *,
    reference: ReferenceCache,
    placement: Placement,
    title: str = "tune",
    source: str = "",
    dev: Dev | None = None,
    template: Mapping[str, Any] = NOTHING,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Tune a student; write `out`/final (a Hugging Face directory) and log.jsonl.

    Continues from the newest checkpoint under `out`/checkpoints if there is one. Under a launcher
    (torchrun, accelerate launch) every process calls it with the same arguments.

    Args:
        student: Files of the untouched student.
        examples: Prepared pairs.
        settings: The recipe's `tune` section.
        seed: Of the order of pairs, of dropout and of adapters.
        out: The run's folder.
        reference: Cache of the untouched student's log-probabilities.
        placement: Device and precision.
        title: Name of the run, for people.
        source: Where the pairs were read, for the model's card.
        dev: Scores of a model while tuning; the first of them decides keep_best and patience.
        template: Arguments of the chat template by which `examples` were rendered; the tuned model
            has them as defaults.
        say: Gets lines on how the run is set up.

    Returns:
        Counts, of which `steps` are those that were taken, and under `last` the last logged metrics
        with the step whose weights are `out`/final.

    Raises:
        UserError: If there is less than one batch of examples, if a checkpoint belongs to another
            run, if the first loss is not what it must be, or if what is written cannot be read.
    """
    train, held_out = split_held_out(examples, settings.eval_pairs or 0)
    steps = steps_on(len(train), len(held_out), settings)
    accelerator = make_accelerator(placement, settings, out)
    if not accelerator.is_main_process:
        say = _silent
    elif warning := small_beta(settings):
        console.print(f"warning: {warning}", markup=False)
    needed = partial(estimate, student, examples, settings, placement, accelerator)
    if memory := informed("memory estimate", needed, say):
        say(format_estimate(memory))
    written = written_dtype(student, settings, placement.dtype)
    # UserError, on every process, where what the run will write could not be read.
    rehearsal = partial(rehearse, student, written, out, template)
    informed("rehearsal of saving", rehearsal, say)
    model = load_student(student, settings, placement, seed)
    if settings.lora is not None:
        say(adapters_line(model))
    silence_dropout(model)
    model.train()
    checkpoint_layers(
        base_model(model), settings.gradient_checkpointing, memory.again if memory else None
    )
    rows = choose_rows(
        base_model(model),
        _sample(examples, settings),
        settings.layout,
        settings.attention,
        accelerator.device.type,
    )
    require_gradients(base_model(model))
    say(f"layout: {rows}")
    if settings.kernels:
        changed = fuse_layers(base_model(model), accelerator.device.type)
        say("fused kernels in " + ", ".join(f"{n} {part}" for part, n in changed.items()))
    if settings.float8:
        require_float8(accelerator.device.type, placement.dtype)
        say(f"8-bit floats in {use_float8(base_model(model))} linear maps")
    if settings.compile:
        compile_layers(base_model(model), accelerator.device.type)
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
    # Scored before a checkpoint is restored: the reference is the untouched student.
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
    done = final_step = last.get("step", start)
    if settings.keep_best and run.progress.best is not None:
        checkpoints.load_best()
        final_step = run.progress.best_step
    finish()
    weights = whole_weights(accelerator, policy)
    if accelerator.is_main_process:
        card = model_card(
            student.name, settings, source=source, pairs=len(train), steps=final_step, seed=seed
        )
        save_student(weights, student, settings, placement, out / "final", template, card)
        check_written(out / "final")  # and if it cannot be read, the checkpoints are still there
    accelerator.wait_for_everyone()
    checkpoints.remove()
    result = {"steps": done, "examples": len(train), "resumed_at": start, "rows": str(rows)}
    if run.evaluates:
        result |= {"held_out": len(held_out), "best_step": run.progress.best_step}
    return {**result, "last": {**last, "final_step": final_step}}


def estimate(
    student: ModelFiles,
    examples: Examples,
    settings: TuneSpec,
    placement: Placement,
    accelerator: Accelerator,
) -> MemoryEstimate:
    """Estimate the memory of each process from the shapes of the model and the longest pair."""
    size = _size(student.directory, placement.dtype, settings.lora, settings.shard)
    pair = examples.prompt_lengths + examples.chosen_lengths + examples.rejected_lengths
    tokens = max(settings.token_budget, int(pair.max()))
    gpus, device = accelerator.num_processes, accelerator.device
    room = None
    if settings.gradient_checkpointing == "auto":
        room = room_on(device) // (gpus if device.type == "cpu" else 1)
        # All processes must take the same layers: sharded weights are gathered in their order.
        room = int(accelerator.gather(torch.tensor([room], device=device)).min())
    return estimate_memory(
        size, settings, placement.dtype, tokens=tokens, gpus=gpus, device=device.type, room=room
    )


@cache  # the arms and seeds of a recipe have the same student
def _size(directory: Path, dtype: str, lora: LoraSpec | None, sharded: bool) -> ModelSize:
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    return measure_model(config, dtype, lora, shard=sharded)


def small_beta(settings: TuneSpec) -> str | None:
    """Warn of a beta of a loss on sums, nearly without effect on a normalised one."""
    beta = settings.effective_beta
    if settings.method != "dpo_norm" or beta is None or beta >= 1:
        return None
    return (
        f"beta {beta:g} is small for dpo_norm, whose margins are per token: the loss will hardly "
        "move from ln 2. The paper uses 5 to 10."
    )


def _silent(line: str) -> None:
    pass


def reference_scope(student: ModelFiles, settings: TuneSpec, placement: Placement) -> str:
    """Name all that decides a reference log-probability besides the ids: weights and precision."""
    ways = [student.fingerprint, placement.dtype]
    if settings.lora and settings.lora.bits:
        ways.append(f"{settings.lora.bits}bit")
    ways += ["float8"] * settings.float8
    if placement.dtype != "float32":  # frozen, gathered or autocast weights round differently
        ways += ["lora"] * bool(settings.lora) + ["shard"] * settings.shard
    return ":".join(ways)


def split_held_out(examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Split pairs into training and held-out ones, by a hash of the prompt.

    Pairs of one prompt are on the same side, so that nothing held out was seen.

    Args:
        examples: Prepared pairs.
        count: Least number of pairs to hold out; a few more if the last prompt has several.

    Returns:
        Indices of (training pairs, held-out pairs), in order.
    """
    if count == 0:
        return np.arange(len(examples)), np.arange(0)
    prompts = [digest(examples[i].prompt.tolist()) for i in range(len(examples))]
    order = sorted(range(len(examples)), key=lambda i: prompts[i])
    while count < len(order) and prompts[order[count]] == prompts[order[count - 1]]:
        count += 1
    return np.array(sorted(order[count:])), np.array(sorted(order[:count]))


def _sample(examples: Examples, settings: TuneSpec) -> list[Tree]:
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
    rows: RowLayout,
    settings: TuneSpec,
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
