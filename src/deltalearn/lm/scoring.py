"""Scores of answers: the one path for reference, evaluation and pretraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from deltalearn.lm.forward import RowLayout, answer_logprobs, make_layout
from deltalearn.lm.layout import Ids, Tree, tree_batches
from deltalearn.lm.rows import choose_rows


@torch.no_grad()
def score_batch(
    model: nn.Module, trees: Sequence[Tree], rows: RowLayout, device: torch.device | str
) -> list[list[float]]:
    """Score the answers of some trees by one forward, without gradients.

    Args:
        model: A model that was given to `attach`; may be wrapped.
        trees: Prompts with their answers.
        rows: The layout and attention to use.
        device: The model's device.

    Returns:
        For each tree, the summed log-probability of each answer.
    """
    sums = iter(answer_logprobs(model, make_layout(trees, rows, device), rows).tolist())
    return [[next(sums) for _ in tree.answers] for tree in trees]


def score_answers(
    model: PreTrainedModel, answers: Sequence[tuple[Ids, Ids]], token_budget: int = 16384
) -> Iterator[tuple[int, float]]:
    """Score answers, longest first, each prompt once.

    Args:
        model: The bare model of transformers.
        answers: (prompt ids, answer ids) of each.
        token_budget: Most tokens of one forward.

    Yields:
        (index, summed log-probability) for every answer.
    """
    places = group_by_prompt(answers)
    trees = [Tree(answers[at[0]][0], tuple(answers[i][1] for i in at)) for at in places]
    if not trees:
        return
    rows = choose_rows(model, trees)
    for batch in tree_batches(trees, rows.layout, token_budget):
        scored = score_batch(model, [trees[i] for i in batch], rows, model.device)
        for tree, sums in zip(batch, scored, strict=True):
            yield from zip(places[tree], sums, strict=True)


def group_by_prompt(answers: Sequence[tuple[Ids, Ids]]) -> list[list[int]]:
    """Indices of the answers of each distinct prompt, in the order of first occurrence."""
    groups: dict[bytes, list[int]] = {}
    for i, (prompt, _) in enumerate(answers):
        groups.setdefault(np.asarray(prompt, np.int64).tobytes(), []).append(i)
    return list(groups.values())
