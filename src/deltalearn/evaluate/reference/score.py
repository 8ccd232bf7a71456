"""Score one model on items by exact probabilities and by its greedy answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.formats.questions import Item
from deltalearn.lm.chat import answer_ids, answer_texts, prompt_ids
from deltalearn.lm.decode import Decoded, Sampling, decode_within_context
from deltalearn.lm.load import Placement, context_length, load_model, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.logprobs import length_batches
from deltalearn.lm.scoring import score_answers
from deltalearn.util.progress import progress


def score_model(
    files: ModelFiles,
    items: Sequence[Item],
    metrics: Sequence[str],
    *,
    max_tokens: int,
    token_budget: int,
    placement: Placement,
    title: str,
) -> list[dict[str, Any]]:
    """One row per item with its prompt as text and the requested metrics, in order of `items`.

    expected_accuracy: probability of exactly the reference answer and the end of the turn, in
    [0, 1], no sampling noise. loglik: its mean log-likelihood per token (nats, end of turn
    included). greedy_accuracy: 1 if the greedy answer of at most `max_tokens` is the reference
    text and ended, else 0; the answer itself is kept as `greedy_answer`. UserError if the chat
    template refuses an item, or if it does not fit into the model's context.
    """
    model, tokenizer = load_model(files, placement), load_tokenizer(files)
    limits = {"max_tokens": max_tokens, "token_budget": token_budget}
    return score_loaded(model, tokenizer, items, metrics, **limits, title=title, name=files.name)


def score_loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    metrics: Sequence[str],
    *,
    max_tokens: int,
    token_budget: int,
    title: str,
    name: str,
) -> list[dict[str, Any]]:
    """Like `score_model`, of a model in memory and in evaluation mode; `name` is for errors."""
    names = [f"evaluation item {item.id!r}" for item in items]
    prompts = prompt_ids(tokenizer, [item.messages for item in items], names)
    texts = tokenizer.batch_decode([list(prompt) for prompt in prompts])
    scored: list[dict[str, Any]] = [
        {"id": item.id, "task": item.task, "prompt": text}
        for item, text in zip(items, texts, strict=True)
    ]
    passes = ("greedy_accuracy" in metrics) + (metrics != ("greedy_accuracy",))
    with progress(f"evaluate {title}", total=len(items) * passes, unit="items") as bar:
        if {"expected_accuracy", "loglik"} & set(metrics):
            answers = answer_ids(tokenizer, [item.answer for item in items], [True] * len(items))
            rows = list(zip(prompts, answers, strict=True))
            _check_context(model, rows, items, name)
            for i, logprob in score_answers(model, rows, token_budget):
                bar.advance(1, amount=1)
                if "expected_accuracy" in metrics:
                    scored[i]["expected_accuracy"] = math.exp(logprob)
                if "loglik" in metrics:
                    scored[i]["loglik"] = logprob / len(rows[i][1])
        if "greedy_accuracy" in metrics:
            for i, answer in _greedy(model, tokenizer, prompts, max_tokens, token_budget):
                bar.advance(1, amount=1)
                if answer is None:
                    raise UserError(
                        f"{names[i]}: its prompt ({len(prompts[i])} tokens) leaves no room for an "
                        f"answer in a context of {context_length(model)} tokens"
                    )
                (text,) = answer_texts(tokenizer, [answer.ids])
                scored[i]["greedy_accuracy"] = float(answer.ended and text == items[i].answer)
                scored[i]["greedy_answer"] = text
    return scored


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    token_budget: int,
) -> Iterator[tuple[int, Decoded | None]]:
    """Yield (item index, greedy answer or None if there is no room for one), longest first."""
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=max_tokens)
    for batch in length_batches([len(p) + max_tokens for p in prompts], token_budget):
        answers = decode_within_context(model, tokenizer, [prompts[i] for i in batch], sampling)
        yield from zip(batch, answers, strict=True)


def _check_context(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    items: Sequence[Item],
    name: str,
) -> None:
    context = context_length(model)
    for (prompt, answer), item in zip(rows, items, strict=True):
        if context is not None and len(prompt) + len(answer) > context:
            raise UserError(
                f"evaluation item {item.id!r} has {len(prompt) + len(answer)} tokens, more than "
                f"the context of {name} ({context}); remove the item or use another model"
            )
