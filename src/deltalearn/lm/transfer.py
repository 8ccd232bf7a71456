"""Tensors on their way to a device, without the host waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the host to a device.

    From ordinary memory the host would wait until a GPU has done all that it was asked before, and
    the GPU would then wait for the host; a copy from pinned memory stands in line with the rest.

    Args:
        tensor: On the CPU.
        device: Where it goes.

    Returns:
        The tensor there.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
