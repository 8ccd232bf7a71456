"""Checkpoints of a run in progress: weights and optimiser state in safetensors, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltalearn.errors import UserError
from deltalearn.files import write_json


class Checkpoints:
    """The newest checkpoint of one run; `identity` says which run it belongs to."""

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """identity: JSON values that must agree before training may go on from a checkpoint."""
        self.directory = directory
        self.identity = dict(identity)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save the state after `step` optimiser steps; earlier checkpoints are removed after."""
        target = self.directory / f"step-{step}"
        temporary = self.directory / f".step-{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        weights, moments = _state(model, optimizer)
        save_file(weights, temporary / "model.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step, "identity": self.identity})
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        for other in self._steps():
            if other != step:
                shutil.rmtree(self.directory / f"step-{other}")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint in place; return its step, or 0 if there is none.

        Raises UserError if it belongs to a run with other settings, data or weights.
        """
        steps = self._steps()
        if not steps:
            return 0
        directory = self.directory / f"step-{steps[-1]}"
        state = json.loads((directory / "state.json").read_text())
        if state["identity"] != self.identity:
            changed = sorted(
                k for k in {*state["identity"], *self.identity}
                if state["identity"].get(k) != self.identity.get(k)
            )  # fmt: skip
            raise UserError(
                f"{directory}: this checkpoint is of a run with other {', '.join(changed)}; "
                "delete the folder to start over, or tune into another directory"
            )
        weights = load_file(directory / "model.safetensors")
        moments = load_file(directory / "optimizer.safetensors")
        _load(model, optimizer, weights, moments)
        return state["step"]

    def remove(self) -> None:
        """Delete all checkpoints, once the run has its final model."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _steps(self) -> list[int]:
        found = self.directory.glob("step-*/state.json")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def _state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    # named_parameters lists a tied weight once, so nothing is stored twice.
    named = dict(model.named_parameters())
    weights = {name: p.detach().contiguous() for name, p in named.items()}
    moments = {
        f"{name}|{key}": value.contiguous()
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return weights, moments


def _load(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
) -> None:
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    for key, value in moments.items():
        name, _, moment = key.partition("|")
        parameter = named[name]
        value = value if moment == "step" else value.to(parameter.device)
        optimizer.state[parameter][moment] = value
