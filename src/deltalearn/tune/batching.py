"""Micro-batches of a step: a pure function of the pairs' lengths.

A step's pairs are split into micro-batches of at most `budget` tokens, the same number on every
rank, with loads as even as can be. Nothing here is random, so a plan never needs to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltalearn.lm.layout import tree_cost

Lengths = tuple[int, Sequence[int]]  # prompt tokens, tokens of each answer


@dataclass
class _Bin:
    """A micro-batch in the making."""

    kind: str
    items: list[int]
    tokens: int = 0
    rows: int = 0
    width: int = 0

    def cost_with(self, prompt: int, answers: Sequence[int]) -> int:
        """Tokens of the forward if one more tree came in."""
        if self.kind == "padded":
            width = max(self.width, prompt + max(answers))
            return width * (self.rows + len(answers))
        return self.tokens + tree_cost(prompt, answers, self.kind)

    def add(self, item: int, prompt: int, answers: Sequence[int]) -> None:
        self.tokens = self.cost_with(prompt, answers)
        self.width = max(self.width, prompt + max(answers))
        self.rows += len(answers)
        self.items.append(item)


def plan_step(
    lengths: Sequence[Lengths], *, budget: int, ranks: int = 1, kind: str = "shared"
) -> list[list[list[int]]]:
    """Split one step's pairs into micro-batches.

    Largest pairs are placed first, each where the load is least, so that ranks finish at about the
    same time.

    Args:
        lengths: Tokens of the prompt and of each answer, for each pair.
        budget: Most tokens of a micro-batch. A larger pair is a micro-batch by itself.
        ranks: Number of processes.
        kind: Layout of the rows, one of `deltalearn.lm.layout.LAYOUTS`.

    Returns:
        plan[rank][micro-batch], a list of indices into `lengths`. Every rank has the same number of
        micro-batches; if there are fewer pairs than micro-batches some are empty.
    """
    sizes = [tree_cost(prompt, answers, kind) for prompt, answers in lengths]
    order = sorted(range(len(lengths)), key=lambda i: (-_width(lengths[i], kind, sizes[i]), i))
    rounds = math.ceil(sum(min(size, budget) for size in sizes) / (ranks * budget))
    while (bins := _distribute(lengths, order, budget, ranks * rounds, kind)) is None:
        rounds += 1
    bins.sort(key=lambda b: (-b.tokens, b.items))
    # Loads of one round are alike: rank r takes the r-th largest of each.
    return [[sorted(b.items) for b in bins[rank::ranks]] for rank in range(ranks)]


def _width(lengths: Lengths, kind: str, size: int) -> int:
    """What to sort by: rows that are padded together should be of like width."""
    prompt, answers = lengths
    return prompt + max(answers) if kind == "padded" else size


def _distribute(
    lengths: Sequence[Lengths], order: Sequence[int], budget: int, count: int, kind: str
) -> list[_Bin] | None:
    """Fill `count` bins, or None if some pair fits into none of them."""
    bins = [_Bin(kind, []) for _ in range(count)]
    current = 0  # of padded rows, whose neighbours in `order` belong together
    share = math.ceil(len(order) / count)
    for i in order:
        prompt, answers = lengths[i]
        if kind == "padded":
            while bins[current].items and (
                len(bins[current].items) >= share
                or bins[current].cost_with(prompt, answers) > budget
            ):
                current += 1
                if current == count:
                    return None
            bins[current].add(i, prompt, answers)
            continue
        best = min(range(count), key=lambda b: (bins[b].tokens, b))
        if bins[best].items and bins[best].cost_with(prompt, answers) > budget:
            return None
        bins[best].add(i, prompt, answers)
    return bins


def plan_tokens(lengths: Sequence[Lengths], plan: Sequence[Sequence[Sequence[int]]], kind: str):
    """Count the tokens of a plan of `plan_step`, over all ranks: (computed, not padding)."""
    computed = useful = 0
    for micro in (micro for rank in plan for micro in rank if micro):
        row = _Bin(kind, [])
        for i in micro:
            row.add(i, *lengths[i])
            useful += tree_cost(*lengths[i], "shared" if kind == "shared" else "packed")
        computed += row.tokens
    return computed, useful
