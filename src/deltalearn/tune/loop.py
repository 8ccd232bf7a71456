"""The training loop: plain steps over planned batches, every pair weighing the same.

A run is a pure function of (student, examples, settings, seed): batches come from the step number
and randomness is re-seeded at every step, so resuming from a checkpoint gives the weights of an
uninterrupted run.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.files import write_text
from deltalearn.lm.load import Placement, load_model, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.logprobs import Sequences, answer_logprobs, collate, score_answers
from deltalearn.progress import progress
from deltalearn.tune.checkpoint import Checkpoints
from deltalearn.tune.examples import Example, examples_digest
from deltalearn.tune.losses import LOSS_AT_START, PREFERENCE_LOSSES
from deltalearn.tune.reference import ReferenceCache
from deltalearn.tune.schedule import batch_at, learning_rate, total_steps

START_TOLERANCE = 1e-3  # how far the first loss may be from ln 2
REFERENCE_TOKEN_BUDGET = 16384


class Settings(Protocol):
    """What `tune` reads; `deltalearn.recipe.TuneSpec` has it and documents each field."""

    method: str
    lr: float
    batch_size: int
    micro_batch_size: int | None
    steps: int | None
    epochs: float | None
    warmup_ratio: float
    min_lr_ratio: float
    adam_betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    checkpoint_every: int | None

    @property
    def effective_beta(self) -> float | None: ...

    def model_dump(self, *, exclude: set[str]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class MicroBatch:
    """Some pairs of a step: (2n rows: n chosen, then n rejected), or n chosen rows for sft."""

    rows: Sequences
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None


def tune(
    student: ModelFiles,
    examples: Sequence[Example],
    settings: Settings,
    seed: int,
    out: Path,
    *,
    reference: ReferenceCache,
    placement: Placement,
    title: str = "tune",
) -> dict[str, Any]:
    """Tune `student` on `examples`; write `out`/final (a Hugging Face directory) and log.jsonl.

    Continues from the newest checkpoint under `out`/checkpoints if there is one. Returns counts
    and the last logged metrics. Raises UserError if there is less than one batch of examples, if
    a checkpoint belongs to another run, or if the first loss is not ln 2.
    """
    steps = total_steps(len(examples), settings.batch_size, settings.steps, settings.epochs)
    if steps == 0:
        raise UserError(
            f"{title}: {len(examples)} usable pairs do not fill one batch of "
            f"{settings.batch_size}; give more prompts or a smaller tune.batch_size"
        )
    accelerator = _accelerator(placement)
    model = load_model(student, Placement(str(accelerator.device), "float32"))
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.adam_betas,
        weight_decay=settings.weight_decay,
        fused=accelerator.device.type in ("cpu", "cuda"),
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    references = None
    if settings.method != "sft":
        scope = f"{student.fingerprint}:{placement.dtype}"
        references = _references(model, examples, reference, scope)
    checkpoints = Checkpoints(
        out / "checkpoints",
        {
            "student": student.fingerprint,
            "examples": examples_digest(examples),
            # How often to save changes nothing about the weights.
            "settings": settings.model_dump(exclude={"checkpoint_every"}),
            "seed": seed,
            "precision": placement.dtype,
        },
    )
    checkpoints.identity = json.loads(json.dumps(checkpoints.identity))  # as it will read back
    start = checkpoints.restore(accelerator.unwrap_model(model), optimizer.optimizer)
    run = _Run(accelerator, model, optimizer, examples, references, settings, seed, steps)
    record = run.loop(start, out / "log.jsonl", checkpoints, title)
    _save_final(accelerator.unwrap_model(model), student, placement, out / "final")
    checkpoints.remove()
    return {"steps": steps, "examples": len(examples), "resumed_at": start, "last": record}


def _accelerator(placement: Placement) -> Accelerator:
    mixed = "bf16" if placement.dtype == "bfloat16" else "no"
    accelerator = Accelerator(mixed_precision=mixed, cpu=placement.device == "cpu")
    if accelerator.num_processes > 1:
        raise UserError("tuning runs in one process for now; start it without a launcher")
    return accelerator


@dataclass
class _Run:
    """One training run: what stays the same from step to step."""

    accelerator: Accelerator
    model: PreTrainedModel
    optimizer: Any
    examples: Sequence[Example]
    references: tuple[Tensor, Tensor] | None  # (chosen, rejected), each (examples,)
    settings: Settings
    seed: int
    steps: int

    def loop(self, start: int, log: Path, checkpoints: Checkpoints, title: str) -> dict[str, Any]:
        """Run steps start..steps, log one line each, checkpoint now and then."""
        every = self.settings.checkpoint_every or max(1, math.ceil(self.steps / 5))
        record: dict[str, Any] = _keep_lines(log, start)
        began = time.monotonic()
        with (
            log.open("a", encoding="utf-8") as lines,
            progress(title, total=self.steps, unit="tokens") as bar,
        ):
            bar.advance(start)
            for step in range(start, self.steps):
                record = self.step(step)
                record["seconds"] = round(time.monotonic() - began, 3)
                lines.write(json.dumps(record) + "\n")
                bar.advance(1, amount=record["tokens"], note=f"loss {record['loss']:.4f}")
                if (step + 1) % every == 0 and step + 1 < self.steps:
                    lines.flush()
                    model = self.accelerator.unwrap_model(self.model)
                    checkpoints.save(step + 1, model, self.optimizer.optimizer)
        return record

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; the host waits for the device once, to read the metrics."""
        settings = self.settings
        torch.manual_seed(self.seed * 1_000_003 + step)  # dropout, if the model has any
        indices = batch_at(step, len(self.examples), settings.batch_size, self.seed)
        rate = learning_rate(
            step, self.steps, settings.lr, settings.warmup_ratio, settings.min_lr_ratio
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        answer_tokens = sum(len(self.examples[i].chosen) for i in indices)
        sums: dict[str, Tensor] = {}
        tokens = 0
        for micro in self.micro_batches(indices):
            if settings.method == "sft":
                loss, metrics = self.sft_loss(micro, answer_tokens)
            else:
                loss, metrics = self.preference_loss(micro)
            self.accelerator.backward(loss)
            tokens += micro.rows.input_ids.numel()
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        sums["grad_norm"] = torch.as_tensor(norm, device=loss.device)
        values = torch.stack([v.detach().float() for v in sums.values()]).tolist()
        record = {"step": step + 1, "lr": rate, "tokens": tokens}
        record |= dict(zip(sums, values, strict=True))
        self.guard(step, record)
        return record

    def micro_batches(self, indices: Sequence[int]) -> Iterator[MicroBatch]:
        """Split a step's pairs into forwards of micro_batch_size pairs."""
        size = self.settings.micro_batch_size or len(indices)
        device = self.accelerator.device
        for at in range(0, len(indices), size):
            part = indices[at : at + size]
            pairs = [self.examples[i] for i in part]
            chosen = [(e.prompt, e.chosen) for e in pairs]
            if self.references is None:
                yield MicroBatch(collate(chosen).to(device))
                continue
            rows = collate([*chosen, *((e.prompt, e.rejected) for e in pairs)]).to(device)
            where = torch.tensor(part)
            yield MicroBatch(rows, *(r[where].to(device) for r in self.references))

    def preference_loss(self, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some pairs, each weighing 1 / batch_size whatever the split (PEERS B22)."""
        weight = 1 / self.settings.batch_size
        policy_chosen, policy_rejected = answer_logprobs(self.model, micro.rows).chunk(2)
        chosen_lengths, rejected_lengths = micro.rows.lengths.chunk(2)
        losses, margins = PREFERENCE_LOSSES[self.settings.method](
            policy_chosen,
            policy_rejected,
            micro.reference_chosen,
            micro.reference_rejected,
            chosen_lengths,
            rejected_lengths,
            beta=self.settings.effective_beta,
        )
        loss = losses.sum() * weight
        with torch.no_grad():
            per_pair = {
                "loss": losses,
                "margin": margins,
                "accuracy": (margins > 0).float(),
                # per token: how far each side has moved from the reference
                "chosen_logratio": (policy_chosen - micro.reference_chosen) / chosen_lengths,
                "rejected_logratio": (policy_rejected - micro.reference_rejected)
                / rejected_lengths,
                "chosen_length": chosen_lengths.float(),
                "rejected_length": rejected_lengths.float(),
            }
            return loss, {name: value.sum() * weight for name, value in per_pair.items()}

    def sft_loss(self, micro: MicroBatch, answer_tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of chosen answers per token of the whole step."""
        loss = -answer_logprobs(self.model, micro.rows).sum() / answer_tokens
        length = micro.rows.lengths.float().sum() / self.settings.batch_size
        return loss, {"loss": loss, "chosen_length": length}

    def guard(self, step: int, record: dict[str, Any]) -> None:
        """Stop on a non-finite loss, and unless the first preference loss is ln 2 (PEERS B24)."""
        if not math.isfinite(record["loss"]) or not math.isfinite(record["grad_norm"]):
            raise UserError(
                f"step {step + 1}: loss {record['loss']}, gradient norm {record['grad_norm']}; "
                "lower tune.lr, or check the pairs and the student's weights"
            )
        off = abs(record["loss"] - LOSS_AT_START)
        if step == 0 and self.references is not None and off > START_TOLERANCE:
            raise UserError(
                f"the first loss is {record['loss']:.6f} instead of ln 2 = {LOSS_AT_START:.6f}: "
                "student and cached reference disagree. Delete the reference folder of the run; "
                "if it persists, the model does not score the same answer the same way twice."
            )


def _references(
    model: PreTrainedModel, examples: Sequence[Example], cache: ReferenceCache, scope: str
) -> tuple[Tensor, Tensor]:
    """Reference log-probabilities of both sides, from the cache or from the untrained model."""

    def score(rows):
        with progress("reference", total=len(rows), unit="answers") as bar:
            model.eval()
            for scored in score_answers(model, rows, REFERENCE_TOKEN_BUDGET):
                bar.advance(1, amount=1)
                yield scored
            model.train()

    rows = [(e.prompt, e.chosen) for e in examples] + [(e.prompt, e.rejected) for e in examples]
    values = torch.tensor(cache.logprobs(scope, rows, score), dtype=torch.float32)
    return tuple(values.chunk(2))


def _keep_lines(log: Path, steps: int) -> dict[str, Any]:
    """Cut log.jsonl back to its first `steps` lines; return the last one kept."""
    lines = log.read_text(encoding="utf-8").splitlines()[:steps] if log.exists() else []
    write_text(log, "".join(line + "\n" for line in lines))
    return json.loads(lines[-1]) if lines else {}


def _save_final(
    model: PreTrainedModel, student: ModelFiles, placement: Placement, out: Path
) -> None:
    """Write an ordinary Hugging Face directory, complete or not at all."""
    temporary = out.with_name(".final.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(getattr(torch, placement.dtype)).save_pretrained(temporary)
    load_tokenizer(student).save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
