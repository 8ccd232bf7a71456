"""How prompts and answers lie in the rows of one forward.

A tree is a prompt with its answers: for a preference pair the chosen and the rejected one, for a
ladder one answer of each model. Three layouts give the same log-probabilities:

- shared: prompt once, then its answers, each with the positions it would have directly after the
  prompt and masked from its siblings. The last prompt token predicts every answer's first token.
- packed: prompt and one answer as a document; several documents in a row, masked from each other.
- padded: one document a row, padded on the right; any causal model can compute it.

Costs in tokens for a pair (P, C, R): P + C + R, 2 P + C + R, and 2 max(P + C, P + R) or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltalearn.lm.logprobs import length_batches
from deltalearn.lm.transfer import send

Ids = Sequence[int] | np.ndarray

LAYOUTS = ("shared", "packed", "padded")
BLOCK = 128  # flex attention masks whole blocks of this many tokens


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and the answers that follow it, each by itself; none of them empty."""

    prompt: Ids
    answers: tuple[Ids, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """The place of a tree in its row.

    [start, answers[0]) is its prompt. Each answer runs from its start to the start of the next, the
    last one to `end`.
    """

    row: int
    start: int
    answers: tuple[int, ...]  # start of each answer
    end: int

    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each answer."""
        return list(zip(self.answers, (*self.answers[1:], self.end), strict=True))


@dataclass(frozen=True)
class Layout:
    """The tensors of one forward, for A answers with N tokens in all, in the order of the trees.

    Attributes:
        input_ids: (R, T) long.
        position_ids: (R, T) long.
        predicts: (N,) long, for each answer token the place of the token before it in the flattened
            (R x T) rows.
        targets: (N,) long, the answer tokens.
        lengths: (A,) long, tokens of each answer.
        document: (R, T) long, the tree of each token, -1 for padding; None for padded rows.
        branch: (R, T) long, the answer of each token, 0 for the prompt; None for padded rows.
        segments: The same as places; empty for padded rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    predicts: Tensor
    targets: Tensor
    lengths: Tensor
    document: Tensor | None
    branch: Tensor | None
    segments: tuple[Segment, ...]

    def to(self, device: torch.device | str) -> Layout:
        """Copy the tensors to another device."""
        values = [getattr(self, field.name) for field in fields(self)]
        moved: list[Any] = [send(v, device) if isinstance(v, Tensor) else v for v in values]
        return Layout(*moved)

    def sum_by_answer(self, tokens: Tensor) -> Tensor:
        """Sums of per-token values (N,) over each answer, (A,)."""
        answer = torch.arange(len(self.lengths), device=tokens.device)
        answer = answer.repeat_interleave(self.lengths, output_size=len(tokens))
        return tokens.new_zeros(len(self.lengths)).index_add(0, answer, tokens)


def tree_cost(prompt: int, answers: Sequence[int], kind: str) -> int:
    """Count the tokens that a tree costs in a row.

    Args:
        prompt: Tokens of the prompt.
        answers: Tokens of each answer.
        kind: Layout, one of LAYOUTS. In padded rows the longest document counts for all.

    Returns:
        Tokens computed.
    """
    if kind == "shared":
        return prompt + sum(answers)
    return sum(prompt + answer for answer in answers)


def longest(tree: Tree) -> int:
    """Tokens of the tree's longest document."""
    return len(tree.prompt) + max(map(len, tree.answers))


def lay_out(trees: Sequence[Tree], kind: str, *, width: int | None = None) -> Layout:
    """Lay `trees` into rows.

    Args:
        trees: Prompts with their answers.
        kind: Layout, one of LAYOUTS.
        width: Most tokens of a row of several trees; a longer tree has a row of its own width. None
            puts all into a single row. Padded rows hold one document each, whatever the width.

    Returns:
        Tensors on the CPU.
    """
    for tree in trees:
        if not len(tree.prompt) or not tree.answers or not all(map(len, tree.answers)):
            raise ValueError("a tree has an empty prompt, no answer or an empty answer")
    if kind == "shared":
        documents = list(trees)
    else:
        documents = [Tree(t.prompt, (answer,)) for t in trees for answer in t.answers]
    sizes = [len(d.prompt) + sum(map(len, d.answers)) for d in documents]
    if kind == "padded":
        rows = [[i] for i in range(len(documents))]
    elif width is None:
        rows = [list(range(len(documents)))]
    else:
        rows = first_fit(sizes, max(width, *sizes))
    return _fill(documents, sizes, rows, kind)


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into bins, largest first; deterministic.

    Args:
        sizes: Size of each item.
        capacity: Most that the sizes of a bin sum to.

    Returns:
        Bins of indices into `sizes`.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        b = next((b for b, left in enumerate(room) if sizes[i] <= left), len(bins))
        if b == len(bins):
            bins.append([])
            room.append(capacity)
        bins[b].append(i)
        room[b] -= sizes[i]
    return bins


def tree_batches(trees: Sequence[Tree], kind: str, budget: int) -> list[list[int]]:
    """Group trees of similar length so that a batch costs at most `budget` tokens.

    The longest come first, so that a run that does not fit into memory fails at once, and padded
    rows waste little. A tree that alone costs more than the budget is a batch of its own.

    Args:
        trees: What is to be computed.
        kind: Layout, one of LAYOUTS.
        budget: Most tokens of a batch, padding included.

    Returns:
        Batches of indices into `trees`.
    """
    if kind == "padded":
        return length_batches([longest(t) for t in trees], budget, [len(t.answers) for t in trees])
    batches: list[list[int]] = []
    left = 0  # tokens that still fit into the batch in the making
    for i in sorted(range(len(trees)), key=lambda i: (-longest(trees[i]), i)):
        cost = tree_cost(len(trees[i].prompt), [len(a) for a in trees[i].answers], kind)
        if batches and cost <= left:
            batches[-1].append(i)
            left -= cost
        else:
            batches.append([i])
            left = budget - cost
    return batches


def _fill(
    documents: Sequence[Tree], sizes: Sequence[int], rows: Sequence[Sequence[int]], kind: str
) -> Layout:
    width = max(sum(sizes[i] for i in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    owner, branch = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    placed: dict[int, Segment] = {}
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            document, start = documents[i], at
            owner[r, start : start + sizes[i]] = i
            size = len(document.prompt)
            ids[r, start : start + size] = document.prompt
            positions[r, start : start + size] = np.arange(size)
            at += size
            starts = []
            for b, answer in enumerate(document.answers, start=1):
                starts.append(at)
                ids[r, at : at + len(answer)] = answer
                positions[r, at : at + len(answer)] = np.arange(size, size + len(answer))
                branch[r, at : at + len(answer)] = b
                at += len(answer)
            placed[i] = Segment(r, start, tuple(starts), at)
    segments = tuple(placed[i] for i in range(len(documents)))
    predicts, lengths = [], []
    for segment in segments:
        last = segment.answers[0] - 1  # the prompt's last token predicts every first token
        for start, end in segment.spans():
            places = np.arange(start - 1, end - 1)
            places[0] = last
            predicts.append(segment.row * width + places)
            lengths.append(end - start)
    targets = np.concatenate([np.asarray(a) for d in documents for a in d.answers])
    own_mask = kind != "padded"
    return Layout(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(np.concatenate(predicts)),
        torch.from_numpy(targets.astype(np.int64)),
        torch.tensor(lengths),
        torch.from_numpy(owner) if own_mask else None,
        torch.from_numpy(branch) if own_mask else None,
        segments if own_mask else (),
    )
