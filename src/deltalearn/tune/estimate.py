"""Estimate of a tuning run from lengths and a model's config alone: no weights, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from deltalearn.errors import UserError
from deltalearn.lm.layout import LAYOUTS
from deltalearn.recipe import TuneSpec
from deltalearn.recipe.methods import METHODS
from deltalearn.tune.batching import Lengths, plan_step, plan_tokens
from deltalearn.tune.fit import PairLengths, steps_on
from deltalearn.tune.measure import ModelSize
from deltalearn.tune.memory import GIB, estimate_memory, room_expected
from deltalearn.tune.schedule import batch_at

MODEL_CONFIGS = Path(__file__).with_name("model_configs")
GPUS = (1, 2, 4, 8)
PLANNED_STEPS = 100  # evenly spaced over the run; the other steps are like them
ALIKE = 0.7  # correlation of the log-lengths of two answers to one prompt: an assumption


@dataclass(frozen=True)
class LayoutPlan:
    """A layout over the planned steps.

    Attributes:
        tokens: Tokens computed, mean of a step.
        padding: Share of the tokens computed that are no text.
        repeated_prompt: Share of the tokens computed that are prompts computed once more.
        micro_batches: Forwards of a step on each of GPUS, means.
    """

    tokens: float
    padding: float
    repeated_prompt: float
    micro_batches: tuple[float, ...]


@dataclass(frozen=True)
class DryRun:
    """Numbers of a run that has not begun.

    Attributes:
        pairs: Pairs to train on.
        batch_size: Pairs of a step.
        steps: Optimiser steps.
        warmup: Steps of warm-up.
        planned: Steps that were planned; the others are like them.
        layouts: The plan of each layout.
        layout: The one that the run takes, as far as a config tells.
        reason: Why rows are padded, if the run did not ask for them.
        largest_forward: Tokens of the largest forward.
        flops: Useful floating-point operations of a step.
        reference_flops: The same of the whole reference pass.
    """

    pairs: int
    batch_size: int
    steps: int
    warmup: int
    planned: int
    layouts: dict[str, LayoutPlan]
    layout: str
    reason: str
    largest_forward: int
    flops: float
    reference_flops: float


def config_names() -> list[str]:
    """List the models whose config is in the package."""
    return sorted(path.stem for path in MODEL_CONFIGS.glob("*.json"))


def known_config(name: str) -> PretrainedConfig:
    """The config of a known model: what decides sizes, and nothing else of it."""
    path = MODEL_CONFIGS / f"{name}.json"
    if name not in config_names():
        raise UserError(
            f"expect.architecture: no config of {name!r}; there are {', '.join(config_names())}"
        )
    return AutoConfig.from_pretrained(path)


def draw_lengths(
    pairs: int, medians: tuple[int, int, int], spread: float, max_length: int, seed: int
) -> PairLengths:
    """Draw assumed lengths from lognormal distributions.

    Answers to one prompt are alike (`ALIKE`). The same arguments always give the same lengths.

    Args:
        pairs: Number of pairs.
        medians: Tokens of prompt, chosen and rejected answer.
        spread: Standard deviation of the logarithm of each.
        max_length: Most tokens of prompt and answer together; both are cut to fit.
        seed: Of the draw.

    Returns:
        Tokens of each pair.
    """
    random = np.random.default_rng(seed)
    prompt, common, chosen, rejected = random.standard_normal((4, pairs))
    own = math.sqrt(1 - ALIKE**2)
    logs = (prompt, ALIKE * common + own * chosen, ALIKE * common + own * rejected)
    drawn = [np.exp(np.log(m) + spread * z) for m, z in zip(medians, logs, strict=True)]
    prompts, *answers = [np.clip(np.rint(d).astype(np.int64), 1, max_length - 1) for d in drawn]
    return PairLengths(prompts, *(np.minimum(a, max_length - prompts) for a in answers))


def _layout(settings: TuneSpec, obstacle: str) -> str:
    """The layout of the run; UserError where the run would refuse what was asked for."""
    if obstacle and settings.layout in ("shared", "packed"):
        raise UserError(
            f"layout {settings.layout!r} cannot be used: {obstacle}; use padded or auto"
        )
    if obstacle and settings.attention != "auto":
        raise UserError(
            f"attention {settings.attention!r} has no effect on padded rows: {obstacle}"
        )
    if settings.layout == "auto":
        return "padded" if obstacle else "shared"
    return settings.layout


def dry_run(
    lengths: PairLengths,
    size: ModelSize,
    settings: TuneSpec,
    seed: int,
    *,
    train: np.ndarray | None = None,
    obstacle: str = "",
) -> DryRun:
    """Plan some steps of the run in every layout.

    Args:
        lengths: Tokens of each pair.
        size: The model.
        settings: The recipe's `tune` section.
        seed: Of the run.
        train: Indices of the pairs that are not held out; default, for assumed pairs: all but the
            last.
        obstacle: Why the model must have padded rows; empty if it need not.

    Returns:
        The numbers of the run.

    Raises:
        UserError: If the pairs fill no batch, or if the layout that was asked for cannot be used.
    """
    if train is None:
        train = np.arange(max(0, len(lengths) - (settings.eval_pairs or 0)))
    pairs = len(train)
    steps = steps_on(pairs, len(lengths) - pairs, settings)
    places = np.unique(np.linspace(0, steps - 1, min(steps, PLANNED_STEPS)).astype(int))
    answers = lengths.answers(settings.method)
    batches = []
    for step in places.tolist():
        order = train[batch_at(step, pairs, settings.batch_size, seed)]
        batches.append([(int(lengths.prompts[i]), [int(a[i]) for a in answers]) for i in order])
    layout = _layout(settings, obstacle)
    training, forward = useful_flops(lengths, size, settings)
    return DryRun(
        pairs=pairs,
        batch_size=settings.batch_size,
        steps=steps,
        warmup=math.ceil(settings.warmup_ratio * steps),
        planned=len(places),
        layouts={kind: _plan(batches, settings.token_budget, kind) for kind in LAYOUTS},
        layout=layout,
        reason=obstacle if settings.layout == "auto" else "",
        largest_forward=max(settings.token_budget, _longest(lengths, answers, layout)),
        flops=float(training[train].mean()) * settings.batch_size,
        reference_flops=float(forward.sum()) if METHODS[settings.method].reference else 0.0,
    )


def _longest(lengths: PairLengths, answers: Sequence[np.ndarray], layout: str) -> int:
    """Tokens of the pair that costs most, which is a forward even where the budget is smaller."""
    if layout == "shared":
        return int((lengths.prompts + sum(answers)).max())
    if layout == "packed":
        return int(sum(lengths.prompts + a for a in answers).max())
    return int((lengths.prompts + np.max(answers, axis=0)).max()) * len(answers)


def _plan(batches: Sequence[Sequence[Lengths]], budget: int, kind: str) -> LayoutPlan:
    computed = filled = distinct = 0
    rounds = np.zeros(len(GPUS))
    for batch in batches:
        plans = [plan_step(batch, budget=budget, ranks=gpus, kind=kind) for gpus in GPUS]
        tokens, useful = plan_tokens(batch, plans[0], kind)
        computed, filled = computed + tokens, filled + useful
        distinct += sum(prompt + sum(answers) for prompt, answers in batch)
        rounds += [len(plan[0]) for plan in plans]
    return LayoutPlan(
        tokens=computed / len(batches),
        padding=1 - filled / computed,
        repeated_prompt=(filled - distinct) / computed,
        micro_batches=tuple(rounds / len(batches)),
    )


def useful_flops(
    lengths: PairLengths, size: ModelSize, settings: TuneSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Count the useful floating-point operations of each pair.

    Useful ones: every distinct token once, the head at answer tokens only, attention to visible
    tokens only, nothing computed again. A product of matrices counts 2 a multiply-add; training
    is a forward, gradients of inputs and gradients of weights, these not for a frozen base.

    Returns:
        (training, one forward of both answers), each (pairs,) float64.
    """

    def forward(answers: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        prompts = lengths.prompts.astype(np.float64)
        answered = np.sum(answers, axis=0, dtype=np.float64)
        seen = prompts**2 / 2 + sum(a * prompts + a.astype(np.float64) ** 2 / 2 for a in answers)
        tokens = prompts + answered
        matrices = 2.0 * size.active * tokens + 2.0 * size.head_params * answered
        return tokens, matrices, 4.0 * size.attention_width * size.layers * seen

    tokens, matrices, attention = forward(lengths.answers(settings.method))
    passes = 3 if settings.lora is None else 2
    adapters = 0 if settings.lora is None else 6.0 * size.trained * tokens
    _, both, both_attention = forward([lengths.chosen, lengths.rejected])
    return passes * matrices + adapters + 3 * attention, both + both_attention


def format_dry_run(
    plan: DryRun,
    sizes: tuple[ModelSize, ModelSize],
    settings: TuneSpec,
    dtype: str,
    tflops: float | None = None,
    *,
    seconds: float | None = None,
    taken: int = 0,
    where: str = "",
) -> str:
    """Write the report of a dry run.

    Args:
        plan: The numbers of the run.
        sizes: The model measured whole and sharded.
        settings: The recipe's `tune` section.
        dtype: Name of the run's precision.
        tflops: Useful TFLOP/s that each GPU is expected to reach; gives hours.
        seconds: Of a step of this run, as measured; gives hours without `tflops`.
        taken: Steps that were taken already.
        where: They were taken.

    Returns:
        Lines of text.
    """
    blocks = [_run_lines(plan, settings), _layout_lines(plan)]
    blocks.append(_memory_lines(plan, sizes, settings, dtype))
    blocks.append([_work_line(plan), _time_line(plan, tflops, seconds, taken, where)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _run_lines(plan: DryRun, settings: TuneSpec) -> list[str]:
    beta = settings.effective_beta
    floor = "" if settings.scheduler == "constant" else f" down to {settings.min_lr_ratio:g} of it"
    return [
        f"method    {settings.method}" + (f", beta {beta:g}" if beta is not None else ""),
        f"run       {plan.steps:,} steps of {plan.batch_size} pairs "
        f"({plan.steps * plan.batch_size / plan.pairs:.2f} epochs of {plan.pairs:,} pairs)",
        f"rate      {settings.lr:g} after {plan.warmup:,} steps of warm-up, {settings.scheduler}"
        + floor,
    ]


def _layout_lines(plan: DryRun) -> list[str]:
    lines = [
        f"Plan, from {plan.planned} of {plan.steps:,} steps:",
        f"{'layout':<9}{'tokens an epoch':>16}{'padding':>9}{'prompt again':>14}"
        f"   micro-batches a step on {', '.join(map(str, GPUS))} GPUs",
    ]
    for kind, found in plan.layouts.items():
        epoch = found.tokens * (plan.pairs // plan.batch_size)
        rounds = "  ".join(f"{n:.1f}" for n in found.micro_batches)
        mark = "   <- this run" if kind == plan.layout else ""
        lines.append(
            f"{kind:<9}{epoch:>16,.0f}{found.padding:>9.1%}{found.repeated_prompt:>14.1%}"
            f"   {rounds}{mark}"
        )
    if plan.reason:
        lines.append(f"Padded rows: {plan.reason}")
    return lines


def _memory_lines(
    plan: DryRun, sizes: tuple[ModelSize, ModelSize], settings: TuneSpec, dtype: str
) -> list[str]:
    size = sizes[0]
    lines = [
        f"Memory per GPU in GiB, {size.total:,} parameters ({size.trained:,} trained), {dtype}, "
        f"forwards of {plan.largest_forward:,} tokens, gradient checkpointing "
        f"{_checkpointing(settings)}:",
    ]
    rows = []
    room = room_expected("cuda")[0] if settings.gradient_checkpointing == "auto" else None
    several = ("DDP", "FSDP2") if _can_shard(settings) else ("DDP",)
    for gpus in GPUS:
        for shard, name in enumerate(several if gpus > 1 else ("whole",)):
            found = estimate_memory(
                sizes[shard],
                settings,
                dtype,
                tokens=plan.largest_forward,
                gpus=gpus,
                shard=bool(shard),
                room=room,
            )
            rows.append((gpus, name, found))
    names = [n for n in rows[0][2].parts if any(found.parts[n] for _, _, found in rows)]
    some = settings.gradient_checkpointing not in (True, False)
    lines.append(
        f"{'GPUs':<5}{'':<7}{'total':>8}"
        + "".join(f"{n:>13}" for n in names)
        + "   layers again" * some
    )
    for gpus, name, found in rows:
        cells = "".join(f"{found.parts[n] / GIB:>13.2f}" for n in names)
        lines.append(
            f"{gpus:<5}{name:<7}{found.total / GIB:>8.1f}{cells}"
            + f"{f'{found.again} of {found.layers}':>15}" * some
        )
    if not rows[0][2].complete:
        lines.append("Activations are not included: this architecture cannot be run on shapes.")
    return lines


def _checkpointing(settings: TuneSpec) -> str:
    share = settings.gradient_checkpointing
    if isinstance(share, str):
        room, whose = room_expected("cuda")
        return f"{share} ({room / GIB:.1f} GiB a GPU, {whose})"
    return f"of {share:.0%} of the layers" if 0 < share < 1 else "on" if share else "off"


def _can_shard(settings: TuneSpec) -> bool:
    """Whether a recipe with these settings may have `shard`."""
    return settings.optimizer == "adamw" and (settings.lora is None or settings.lora.bits is None)


def _work_line(plan: DryRun) -> str:
    line = f"Useful work: {plan.flops / 1e12:,.4g} TFLOP a step"
    if plan.reference_flops:
        line += f", {plan.reference_flops / 1e15:,.3g} PFLOP once for the reference"
    return line


def _time_line(
    plan: DryRun, tflops: float | None, seconds: float | None, taken: int, where: str
) -> str:
    if tflops is not None:
        work = plan.flops * plan.steps + plan.reference_flops
        times = [f"{duration(work / (tflops * 1e12 * gpus))} on {gpus}" for gpus in GPUS]
        return f"At {tflops:g} useful TFLOP/s a GPU: {', '.join(times)}"
    if seconds is None:
        return f"Time: unknown; give --tflops, or begin the run, whose log in {where} then tells it"
    rate = plan.flops / seconds / 1e12
    left = duration(max(0, plan.steps - taken) * seconds)
    return (
        f"At {rate:,.3g} useful TFLOP/s, measured over {taken:,} steps in {where}: "
        f"{duration(plan.steps * seconds)}, {left} of them left of that run"
    )


def duration(seconds: float) -> str:
    """A time for people, in hours or minutes."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
