"""Log-probabilities of answers in padded rows, by the model's own forward: the plain way.

It pretrains the lab's models and is what the fast paths of `deltalearn.lm.scoring` are checked
against. The language-model head is applied only where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sequences:
    """Prompts with their answers as rows, padded on the right.

    Attributes:
        input_ids: (B, T) long.
        predicts: (B, T) bool, True at each position whose *next* token belongs to the answer.
        targets: (N,) long, those next tokens in row-major order.
        lengths: (B,) long, answer tokens of each row, so N = lengths.sum().
    """

    input_ids: Tensor
    predicts: Tensor
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> Sequences:
        """Copy the tensors to another device."""
        return Sequences(
            *(t.to(device) for t in (self.input_ids, self.predicts, self.targets, self.lengths))
        )


def collate(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sequences:
    """Lay (prompt ids, answer ids) rows side by side; both sides of every row must be non-empty.

    Padding is id 0 on the right: under causal attention it changes nothing to its left.
    """
    for i, (prompt, answer) in enumerate(rows):
        if not prompt or not answer:
            raise ValueError(f"row {i} has an empty prompt or answer")
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = [[*p, *a, *[0] * (width - len(p) - len(a))] for p, a in rows]
    before = torch.tensor([[len(p) - 1] for p, _ in rows])
    lengths = torch.tensor([[len(a)] for _, a in rows])
    at = torch.arange(width)
    predicts = (at >= before) & (at < before + lengths)
    targets = [token for _, answer in rows for token in answer]
    return Sequences(torch.tensor(input_ids), predicts, torch.tensor(targets), lengths[:, 0])


@contextmanager
def head_only_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Within the block, the model's head sees only hidden states at `places`, indices or a mask.

    Places count through the flattened (B x T) rows. The selection happens at the head's input, so
    that everything the model itself does after the head (soft-capping, logit scales) still
    happens, and wrappers such as DDP see a full forward. Logits then have shape (1, N, V).
    """

    def select(_module, args):
        (hidden,) = args
        return (hidden.flatten(0, 1)[places.flatten()].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def gather_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target (N,) under logits (N, V), float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def padded_logprobs(model: PreTrainedModel, batch: Sequences) -> Tensor:
    """Log-probability of every answer token of padded rows, by the model's own forward.

    Args:
        model: Any causal language model.
        batch: Rows as `collate` makes them, on the model's device.

    Returns:
        (N,), float32 or wider, differentiable, in the order of `batch.targets`.
    """
    with head_only_at(model, batch.predicts):
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[0]
    return gather_logprobs(logits, batch.targets)


def length_batches(
    lengths: Sequence[int], token_budget: int, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Group indices of similar length so that a batch costs at most `token_budget`.

    The longest come first, so that a run that does not fit into memory fails at once. An item that
    alone costs more than the budget is a batch of its own.

    Args:
        lengths: Tokens of each item's longest row.
        token_budget: Most tokens of a batch: its rows times its longest row.
        rows: Rows of each item; default one.

    Returns:
        Batches of indices into `lengths`.
    """
    batches: list[list[int]] = []
    filled = 0  # rows of the batch in the making
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        own = 1 if rows is None else rows[index]
        if batches and (filled + own) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
            filled += own
        else:
            batches.append([index])
            filled = own
    return batches
