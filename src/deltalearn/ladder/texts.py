"""Given texts as ids, and the log-likelihood that a model gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.formats.questions import read_items
from deltalearn.formats.rows import rows
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.load import context_length, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.scoring import score_answers

Ids = tuple[list[int], list[int]]  # of what is given, and of what is scored
PLAIN = "text"  # column of a text by itself


def read_texts(
    source: str, files: ModelFiles, model: PreTrainedModel, answer_column: str, limit: int | None
) -> list[Ids]:
    """Read texts as ids.

    Rows with a prompt and an answer are rendered by the model's chat template, and the answer is
    what is scored; rows with a text alone are scored from their second token on.

    Args:
        source: As for `formats.rows.rows`.
        files: The model, with its tokenizer.
        model: Its context bounds what is scored.
        answer_column: Of the answers.
        limit: Texts to read; default all.

    Returns:
        Ids of each.

    Raises:
        UserError: If rows are no texts, or too long.
    """
    first = next(iter(rows(source, default=None)), None)
    columns = set(first.value) if first is not None and isinstance(first.value, dict) else set()
    context = context_length(model)
    if PLAIN in columns and answer_column not in columns:
        return _plain(source, load_tokenizer(files, chat=False), limit, context)
    items = read_items(source, answer_column=answer_column, limit=limit)
    tokenizer = load_tokenizer(files)
    names = [f"{source}: item {item.id!r}" for item in items]
    prompts = prompt_ids(tokenizer, [item.messages for item in items], names)
    answers = answer_ids(tokenizer, [item.answer for item in items], [True] * len(items))
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        if context is not None and len(prompt) + len(answer) > context:
            raise UserError(
                f"{name} has {len(prompt) + len(answer)} tokens, more than the context of "
                f"{files.name} ({context}); leave it out"
            )
    return list(zip(prompts, answers, strict=True))


def _plain(
    source: str, tokenizer: PreTrainedTokenizerBase, limit: int | None, context: int | None
) -> list[Ids]:
    """Texts by themselves, each cut at the model's context."""
    found: list[Ids] = []
    for row in rows(source, default=None):
        text = row.value.get(PLAIN) if isinstance(row.value, dict) else None
        if row.problem or not isinstance(text, str):
            raise UserError(f"{row.where}: {row.problem or f'column {PLAIN!r} must be a text'}")
        ids = tokenizer(text)["input_ids"][:context]
        if len(ids) < 2:
            raise UserError(f"{row.where}: a text of {len(ids)} tokens has nothing to score")
        found.append((ids[:1], ids[1:]))
        if len(found) == limit:
            break
    return found


def loglik(model: PreTrainedModel, texts: Sequence[Ids]) -> np.ndarray:
    """Score texts by a model.

    Args:
        model: The model.
        texts: Ids of each.

    Returns:
        (n,) mean log-likelihood of a token of each text, in nats.
    """
    found = np.empty(len(texts))
    for at, logprob in score_answers(model, texts):
        found[at] = logprob / len(texts[at][1])
    return found
