"""Weights made worse in place: in fewer bits, or with noise on them.

Matrices change; embeddings, head and norms stay. So does the size of the files, as what is rounded
is written in full.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@torch.no_grad()
def round_weights(model: PreTrainedModel, bits: int, group_size: int) -> None:
    """Round every matrix to the nearest of 2^bits even steps between each group's ends.

    Args:
        model: Changed in place.
        bits: Of a weight.
        group_size: Weights of one input row that share a scale and a zero.
    """
    for matrix, inputs in _matrices(model):
        for part in matrix.split(group_size, dim=inputs):
            exact = part.float()
            low, high = exact.aminmax(dim=inputs, keepdim=True)
            step = (high - low).div(2**bits - 1).clamp(min=torch.finfo(torch.float32).tiny)
            part.copy_(((exact - low) / step).round() * step + low)


@torch.no_grad()
def add_noise(model: PreTrainedModel, size: float, seed: int) -> None:
    """Add normal noise to every matrix.

    Args:
        model: Changed in place.
        size: Standard deviation of the noise, in that of the matrix.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for matrix, _ in _matrices(model):
        noise = torch.randn(matrix.shape, generator=generator)
        matrix.copy_(matrix.float() + noise * size * matrix.float().std())


def _matrices(model: PreTrainedModel) -> Iterator[tuple[Tensor, int]]:
    """Matrices, or stacks of them (experts), each once, with the dimension of their inputs."""
    seen: set[int] = set()
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, (0 if isinstance(module, Conv1D) else -1)
