"""Checkpoints of a run in progress: weights and optimiser state in safetensors, no pickle.

What is stored is whole, whatever the weights are split over: a run may go on with another number
of processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from deltalearn.errors import UserError
from deltalearn.util.files import replacing, replacing_directory, write_json

Tensors = dict[str, Tensor]


class Checkpoints:
    """The newest checkpoint of one run; `identity` says which run it belongs to.

    Every process calls every method; the main one alone writes. `directory` must be the same
    folder for all of them.
    """

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Prepare to save and restore.

        Args:
            directory: The same folder for all processes.
            identity: JSON values that must agree before training may go on from a checkpoint.
            accelerator: The run's processes.
            model: As it is trained, wrapped or sharded.
            optimizer: Its optimiser.
        """
        self.directory = directory
        self.identity = json.loads(json.dumps(identity))  # as it will read back
        self.accelerator = accelerator
        self.model = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        # DeepSpeed would pickle the state it holds, so there is none of it on disk.
        self.possible = accelerator.distributed_type != DistributedType.DEEPSPEED

    def save(self, step: int, progress: Mapping[str, Any]) -> None:
        """Save the state after `step` optimiser steps, then remove earlier checkpoints.

        Args:
            step: Number of steps taken.
            progress: JSON values that `restore` gives back, such as the best score so far.
        """
        if not self.possible:
            return
        weights = trainable_state(self.model)
        moments = _moments(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            state = {"step": step, "identity": self.identity, "progress": dict(progress)}
            with replacing_directory(self.directory / f"step-{step}") as folder:
                save_file(weights, folder / "model.safetensors")
                save_file(moments, folder / "optimizer.safetensors")
                write_json(folder / "state.json", state)
            for other in self._steps():
                if other != step:
                    shutil.rmtree(self.directory / f"step-{other}")
        self.accelerator.wait_for_everyone()

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Load the newest checkpoint in place.

        Returns:
            (step, progress) as saved; (0, {}) if there is none.

        Raises:
            UserError: If it belongs to a run with other settings, data or weights.
        """
        steps = self._steps()
        if not steps:
            return 0, {}
        directory = self.directory / f"step-{steps[-1]}"
        state = json.loads((directory / "state.json").read_text())
        if changed := _differences(state["identity"], self.identity):
            raise UserError(
                f"{directory}: this checkpoint is of a run with other {', '.join(changed)}; "
                "delete the folder to start over, or tune into another directory"
            )
        load_trainable(self.model, self._read(directory / "model.safetensors"))
        _load_moments(self.model, self.optimizer, self._read(directory / "optimizer.safetensors"))
        return state["step"], state["progress"]

    def save_best(self) -> None:
        """Keep the weights as they are now as the best so far."""
        weights = trainable_state(self.model)
        if self.accelerator.is_main_process:
            with replacing(self.directory / "best.safetensors") as temporary:
                save_file(weights, temporary)
        self.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """Put the best weights back into the model."""
        load_trainable(self.model, self._read(self.directory / "best.safetensors"))

    def remove(self) -> None:
        """Delete all checkpoints, once the run has its final model."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _read(self, path: Path) -> Tensors:
        """Tensors of a file; nothing where they come from the main process anyway."""
        needed = self.accelerator.is_main_process or not isinstance(self.model, FSDPModule)
        return load_file(path) if needed else {}

    def _steps(self) -> list[int]:
        found = self.directory.glob("step-*/state.json")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs, settings one by one."""
    changed = []
    for key in sorted({*saved, *now}):
        before, after = saved.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            changed += [
                f"{name} ({before.get(name)}, now {after.get(name)})"
                for name in sorted({*before, *after})
                if before.get(name) != after.get(name)
            ]
        else:
            changed.append(key)
    return changed


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def trainable_state(model: nn.Module) -> Tensors:
    """Whole trainable weights by name; of sharded weights on the main process alone."""
    # named_parameters lists a tied weight once, so nothing is stored twice.
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not isinstance(model, FSDPModule):
        return {name: p.detach().contiguous() for name, p in named.items()}
    whole: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return {name: value for name, value in whole.items() if name in named}


def load_trainable(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put `weights` into the model; those of the main process, if it is sharded."""
    if isinstance(model, FSDPModule):
        model.reshard()  # a forward that no backward followed has left its own weights whole
        set_model_state_dict(model, dict(weights), options=SPREAD)
        return
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(value)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's tensors as "parameter|moment", where `trainable_state` gives weights."""
    state: Any = {n: optimizer.state.get(p, {}) for n, p in model.named_parameters()}
    if isinstance(model, FSDPModule):
        state = get_optimizer_state_dict(model, optimizer, options=WHOLE).get("state", {})
    return {
        f"{name}|{key}" if isinstance(value, Tensor) else f"{name}|{key}|": _as_tensor(value)
        for name, moments in state.items()
        for key, value in moments.items()
    }


def _as_tensor(value: Tensor | float) -> Tensor:
    """Plain numbers (Adafactor's step) keep their precision: int64 or float64."""
    if isinstance(value, Tensor):
        return value.contiguous()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _load_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in moments.items():
        name, moment, *number = key.split("|")
        by_name.setdefault(name, {})[moment] = value.item() if number else value
    if isinstance(model, FSDPModule):
        # The settings of the groups are those of now; only the main process has any of it.
        state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
        whole: dict[str, Any] = {**state, "state": by_name} if state else {}
        set_optimizer_state_dict(model, optimizer, whole, options=SPREAD)
        return
    named = dict(model.named_parameters())
    for name, values in by_name.items():
        device = named[name].device

        def placed(moment: str, value: Any, device: torch.device = device) -> Any:
            # AdamW counts its steps on the host.
            return value.to(device) if isinstance(value, Tensor) and moment != "step" else value

        optimizer.state[named[name]] = {m: placed(m, value) for m, value in values.items()}
