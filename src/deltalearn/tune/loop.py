"""The training loop: plain steps over planned batches, every pair weighing the same.

A run is a pure function of (student, examples, settings, seed): batches come from the step number
and randomness is re-seeded at every step, so resuming from a checkpoint gives the weights of an
uninterrupted run. The number of processes changes rounding only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.recipe import TuneSpec
from deltalearn.tune.batching import plan_step
from deltalearn.tune.checkpoint import Checkpoints
from deltalearn.tune.distributed import base_model
from deltalearn.tune.losses import loss_at_start
from deltalearn.tune.schedule import batch_at, learning_rate
from deltalearn.tune.step import Objective
from deltalearn.util.files import write_text
from deltalearn.util.progress import progress
from deltalearn.util.signals import SafeStop

START_TOLERANCE = 1e-3  # how far the first loss may be from its exact value
START_TOLERANCE_LOW = 2e-2  # in 16 bits a product rounds by the shape of its batch
Dev = Callable[[PreTrainedModel], dict[str, float]]  # scores of a model, the first one decides


@dataclass
class Progress:
    """State that a checkpoint keeps beside weights: the evaluations and the time so far.

    Every field has a default, so that checkpoints from before it was added still load.
    """

    best: float | None = None  # of what is maximised
    best_step: int = 0
    since_best: int = 0  # evaluations without a gain
    seconds: float = 0.0  # of training, over all starts of the run

    def better(self, score: float, step: int) -> bool:
        """Take note of a score, the higher the better; True if it is the best so far."""
        if self.best is None or score > self.best:
            self.best, self.best_step, self.since_best = score, step, 0
            return True
        self.since_best += 1
        return False


@dataclass
class Run:
    """One training run: what stays the same from step to step."""

    accelerator: Accelerator
    policy: nn.Module
    optimizer: Any
    objective: Objective
    train: np.ndarray  # indices of the pairs that are trained on
    held_out: np.ndarray
    settings: TuneSpec
    seed: int
    steps: int
    checkpoints: Checkpoints
    out: Path
    title: str
    track: Callable[[dict[str, float], int], None]
    dev: Dev | None = None
    progress: Progress = field(default_factory=Progress)

    def loop(self, start: int) -> dict[str, Any]:
        """Run steps start..steps; one line each in log.jsonl, evaluations in evals.jsonl.

        Returns:
            The last line of log.jsonl. Stopping early adds `stopped_early` and `planned_steps` to
            it.
        """
        every = self.settings.checkpoint_every or max(1, math.ceil(self.steps / 5))
        main = self.accelerator.is_main_process
        log, evals = self.out / "log.jsonl", self.out / "evals.jsonl"
        record = _keep_lines(log, start) if main else {}
        if main and self.evaluates:
            _keep_lines(evals, start)
        began = time.monotonic() - self.progress.seconds
        with SafeStop() as stop, progress(self.title, total=self.steps, unit="tokens") as bar:
            bar.advance(start)
            for step in range(start, self.steps):
                record = self.step(step, stop.asked)
                stopping = record.pop("stop") > 0
                self.progress.seconds = record["seconds"] = round(time.monotonic() - began, 3)
                done = step + 1
                if main:
                    _append(log, record)
                    self.track({k: v for k, v in record.items() if k != "step"}, done)
                    bar.advance(1, amount=record["tokens"], note=f"loss {record['loss']:.4f}")
                due = done % self.eval_every == 0 or done == self.steps
                if self.evaluates and due and self.evaluate(done, evals if main else None):
                    record |= {"stopped_early": True, "planned_steps": self.steps}
                    if main:
                        _keep_lines(log, step)
                        _append(log, record)
                    break
                if stopping or (done % every == 0 and done < self.steps):
                    self.checkpoints.save(done, vars(self.progress))
                if stopping and done < self.steps:
                    stop.leave(f"{self.title}: stopped after step {done} of {self.steps}")
        return record

    def step(self, step: int, stop: bool) -> dict[str, Any]:
        """One optimiser step; the host waits for the device once, to read the metrics."""
        settings, ranks = self.settings, self.accelerator.num_processes
        torch.manual_seed(self.seed * 1_000_003 + step)  # LoRA's dropout, if it has any
        order = batch_at(step, len(self.train), settings.batch_size, self.seed)
        batch = self.objective.batch(self.train[order].tolist())
        rate = learning_rate(
            step,
            self.steps,
            settings.lr,
            settings.warmup_ratio,
            settings.min_lr_ratio,
            settings.scheduler,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        micros = self._plan(batch.indices)
        sums: dict[str, Tensor] = {}
        tokens = 0
        for at, places in enumerate(micros):
            last = at == len(micros) - 1
            with self._gradients_meet(last):
                loss, metrics, computed = self.objective.micro(self.policy, places, batch)
                # Wrappers average gradients over ranks; the batch is split over them.
                self.accelerator.backward(loss * ranks)
            tokens += computed
            _add(sums, metrics)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, value in (("tokens", tokens), ("stop", stop)):  # filled there, not copied
            sums[name] = torch.full((), float(value), device=self.objective.device)
        values = self._reduce(sums, norm)
        values["tokens"] = round(values["tokens"])
        record = {"step": step + 1, "lr": rate, **values}
        self._guard(step, record)
        return record

    def _gradients_meet(self, last: bool) -> AbstractContextManager:
        """Let ranks exchange gradients at the last micro-batch of a step only."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.accelerator.sync_gradients = last  # its backward also takes the step
            return nullcontext()
        if last or isinstance(self.policy, FSDPModule):
            return nullcontext()  # sharded gradients that wait would be whole on every rank
        return self.accelerator.no_sync(self.policy)

    def _plan(self, indices: Sequence[int]) -> list[list[int]]:
        """This rank's micro-batches, as places in `indices`."""
        plan = plan_step(
            self.objective.lengths(indices),
            budget=self.settings.token_budget,
            ranks=self.accelerator.num_processes,
            kind=self.objective.rows.layout,
        )
        return plan[self.accelerator.process_index]

    def _reduce(self, sums: dict[str, Tensor], norm: Any = None) -> dict[str, float]:
        """Sums over ranks as plain numbers: the one place where the host waits for the device."""
        stacked = torch.stack([value.detach().float() for value in sums.values()])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "sum")
        if norm is not None:  # the same on every rank
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            stacked = torch.cat([stacked, norm.detach().float().reshape(1).to(stacked.device)])
            sums = {**sums, "grad_norm": norm}
        return dict(zip(sums, stacked.tolist(), strict=True))

    @property
    def evaluates(self) -> bool:
        """True if anything is measured while tuning."""
        return bool(len(self.held_out)) or self.dev is not None

    @property
    def eval_every(self) -> int:
        """Number of steps between evaluations."""
        return self.settings.eval_every or max(1, math.ceil(self.steps / 10))

    def evaluate(self, step: int, lines: Path | None) -> bool:
        """Measure held-out pairs and the dev suite.

        They are appended to the file `lines`, if there is one. True if the run should stop early.
        """
        record: dict[str, float] = {}
        self.policy.eval()
        if len(self.held_out):
            record |= {f"eval_{k}": v for k, v in self.held_out_metrics().items()}
        score = -record.get("eval_loss", math.nan)
        if self.dev is not None:
            with self.bare_model() as model:
                scores = self.dev(model)
            score = next(iter(scores.values()))
            record |= {f"dev_{name}": value for name, value in scores.items()}
        self.policy.train()
        if self.progress.better(score, step) and self.settings.keep_best:
            self.checkpoints.save_best()
        if lines is not None:
            _append(lines, {"step": step, **record})
            self.track(record, step)
        patience = self.settings.patience
        return patience is not None and self.progress.since_best >= patience

    @contextmanager
    def bare_model(self) -> Iterator[PreTrainedModel]:
        """The model of transformers as it is now, adapters at work, for code that knows no peft.

        Inside peft's wrapper it lacks what the wrapper's forward brings along: the precision, and
        the sharded weights outside the layers, whole. Within the block it has both.
        """
        policy = self.accelerator.unwrap_model(self.policy)
        model = base_model(policy)
        if model is policy:
            yield model
        elif isinstance(policy, FSDPModule):
            policy.unshard()
            yield model
            policy.reshard()
        else:
            with self.accelerator.autocast():
                yield model

    @torch.no_grad()
    def held_out_metrics(self) -> dict[str, float]:
        """Means over the held-out pairs, without their gradients."""
        batch = self.objective.batch(self.held_out.tolist())
        sums: dict[str, Tensor] = {}
        for places in self._plan(batch.indices):
            _add(sums, self.objective.micro(self.policy, places, batch)[1])
        return self._reduce(sums)

    def _guard(self, step: int, record: dict[str, Any]) -> None:
        """Stop on a non-finite loss, and unless the first loss is what it must be."""
        if not math.isfinite(record["loss"]) or not (
            math.isfinite(record["grad_norm"]) or self._finds_its_scale()
        ):
            raise UserError(
                f"step {step + 1}: loss {record['loss']}, gradient norm {record['grad_norm']}; "
                "lower tune.lr, or check the pairs and the student's weights"
            )
        start = None if step else loss_at_start(self.settings)
        if start is None:
            return
        whole = self.accelerator.mixed_precision == "no"
        tolerance = START_TOLERANCE if whole else START_TOLERANCE_LOW
        if abs(record["loss"] - start) > tolerance * max(1.0, start):
            raise UserError(
                f"the first loss is {record['loss']:.6f} instead of {start:.6f}: "
                "student and cached reference disagree. Delete the reference folder of the run; "
                "if it persists, the model does not score the same answer the same way twice."
            )

    def _finds_its_scale(self) -> bool:
        """Tell whether float16's loss scale, halved at each overflow, may yet become small enough.

        The step is left out then. accelerate does not see that of a fused optimiser, which is
        called and leaves it out itself.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1


def _add(sums: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
    for name, value in metrics.items():
        sums[name] = sums[name] + value if name in sums else value


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def _keep_lines(log: Path, steps: int) -> dict[str, Any]:
    """Cut a log back to its lines of the first `steps` steps; return the last one kept."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill
            break
        if record["step"] <= steps:
            kept.append(record)
    write_text(log, "".join(json.dumps(record) + "\n" for record in kept))
    return kept[-1] if kept else {}
