"""Check that a model and a set of pairs go together, before weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.layout import Tree
from deltalearn.lm.rows import sharing_obstacle
from deltalearn.recipe import TuneSpec
from deltalearn.tune.dataset import Examples
from deltalearn.tune.schedule import total_steps
from deltalearn.util.failure import brief


@dataclass(frozen=True)
class PairLengths:
    """Tokens of each usable pair: three arrays (pairs,); answers count their end-of-turn token."""

    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @classmethod
    def of(cls, examples: Examples) -> PairLengths:
        """Take the lengths of prepared pairs."""
        return cls(examples.prompt_lengths, examples.chosen_lengths, examples.rejected_lengths)

    def __len__(self) -> int:
        return len(self.prompts)

    def documents(self, method: str) -> np.ndarray:
        """Tokens of each prompt with the longer answer, which is how far positions go."""
        return self.prompts + np.max(self.answers(method), axis=0)

    def answers(self, method: str) -> list[np.ndarray]:
        """Lengths of the answers that `method` trains on."""
        return [self.chosen] if method == "sft" else [self.chosen, self.rejected]


def steps_on(pairs: int, held_out: int, settings: TuneSpec) -> int:
    """Count the optimiser steps of a run.

    Args:
        pairs: Pairs to train on.
        held_out: Pairs held out, for the error message.
        settings: The recipe's `tune` section.

    Returns:
        At least 1.

    Raises:
        UserError: If the pairs fill no batch.
    """
    steps = total_steps(pairs, settings.batch_size, settings.steps, settings.epochs)
    if steps == 0:
        fewer = ", fewer eval_pairs" if held_out else ""
        why = f" (eval_pairs holds out {held_out:,} of {pairs + held_out:,})" if held_out else ""
        raise UserError(
            f"{pairs:,} pairs to train on do not fill one batch of {settings.batch_size}{why}; "
            f"give more pairs{fewer} or a smaller tune.batch_size"
        )
    return steps


def check_fit(
    config: PretrainedConfig, lengths: PairLengths, method: str, largest_id: int = -1
) -> str | None:
    """Check that a model has a place for every token, before its weights are read.

    Positions that are computed (RoPE) have no end; going beyond those that the model was made for
    is a warning.

    Args:
        config: The model's config.
        lengths: Tokens of each pair.
        method: Name of the tuning method, which decides the answers that count.
        largest_id: The largest token id of the pairs.

    Returns:
        A warning, or None.

    Raises:
        UserError: If an id or a position has no row in the model's tables.
    """
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if rows is not None and largest_id >= rows:
        raise UserError(
            f"the tokenizer makes id {largest_id:,} of these pairs and the model has {rows:,} rows "
            "of embeddings: they are not of one model, or tokens were added and the model was not "
            "resized"
        )
    context = getattr(text, "max_position_embeddings", None)
    longest = int(lengths.documents(method).max())
    if context is None or context < 1 or longest <= context:
        return None
    found = f"the longest prompt with its answer has {longest:,} tokens"
    remedy = f"--max-length {context}"
    if _has_position_table(config, context):
        raise UserError(f"{found} and the model has {context:,} positions; give {remedy}")
    return (
        f"warning: {found} and the model was made for {context:,} positions; give {remedy} to "
        "leave out what goes beyond them"
    )


def _has_position_table(config: PretrainedConfig, context: int) -> bool:
    """Whether positions are rows of a table with room for `context` (some keep a few more)."""
    if getattr(config.get_text_config(), "rope_parameters", None) is not None:
        return False
    try:
        model = _without_storage(config)
    except Exception:  # then it cannot be loaded either, and loading says why
        return False
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    tokens = model.get_input_embeddings().weight
    tables = [t for t in tables if t is not tokens] + [b for b in model.buffers() if b.ndim == 2]
    return any(context <= len(table) < context + 8 for table in tables)


def _without_storage(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def config_obstacle(config: PretrainedConfig, lengths: PairLengths, method: str) -> str:
    """Say why the model of `config` must have padded rows.

    This is the run's own test, on a model without storage. The run also tries the layout on the
    weights.

    Args:
        config: The model's config.
        lengths: Tokens of each pair.
        method: Name of the tuning method.

    Returns:
        The reason; empty if the config tells none.
    """
    try:
        model = _without_storage(config)
    except Exception as error:
        return f"not known without the weights ({brief(error)})"
    at = int(lengths.documents(method).argmax())
    answers = tuple(range(int(a[at])) for a in lengths.answers(method))
    return sharing_obstacle(model, [Tree(range(int(lengths.prompts[at])), answers)])
