"""Score one model on items by exact probabilities and by its greedy answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.evaluate.reference.kept import Kept
from deltalearn.evaluate.reference.scorers import Scorer
from deltalearn.evaluate.reply import Reply
from deltalearn.evaluate.room import Room
from deltalearn.formats.questions import Item
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.decode import Sampling, Stopped, decode_within_context
from deltalearn.lm.load import context_length
from deltalearn.lm.logprobs import length_batches
from deltalearn.lm.render import PLAIN
from deltalearn.lm.scoring import score_answers
from deltalearn.records import Rendering
from deltalearn.util.progress import progress

GROUP = 512  # answers whose probabilities are known together, or not at all


@dataclass(frozen=True)
class Asked:
    """Questions that are put to a model for each item.

    Attributes:
        metrics: Any of expected_accuracy, loglik, greedy_accuracy.
        scorer: Compares a greedy answer with the reference.
        max_tokens: Of a greedy answer.
        token_budget: Tokens of one batch.
        rendering: Arguments of the model's chat template, and its day.
        reasoning_tokens: That reasoning may take beyond max_tokens, of a model that may reason.
    """

    metrics: Sequence[str]
    scorer: Scorer
    max_tokens: int
    token_budget: int
    rendering: Rendering = PLAIN
    reasoning_tokens: int = 0


def score_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    asked: Asked,
    *,
    title: str,
    name: str,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Score a model on items.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        items: Questions with reference answers.
        asked: Which metrics, and how.
        title: For the progress bar.
        name: Of the model, for errors.
        kept: What was answered before; default: nothing, and nothing is kept.

    Returns:
        One row per item, in their order, with its prompt as text and the metrics.
        expected_accuracy: probability of exactly the reference answer and the end of the turn, in
        [0, 1], no sampling noise. loglik: the logarithm of that, in nats for each byte of the
        answer in UTF-8: tokens are not the same for two tokenizers. greedy_accuracy: the scorer's
        verdict on the greedy answer, which is kept as `greedy_answer`, with the `reasoning` before
        it, the `fault` if there is no answer (see `Reply`), and what the scorer found in it as
        `extracted`.

    Raises:
        UserError: The chat template refuses an item, it does not fit into the model's context, or
            its reference is unfit for the scorer.
    """
    names = [f"evaluation item {item.id!r}" for item in items]
    rendering = asked.rendering
    prompts = prompt_ids(tokenizer, [item.messages for item in items], names, rendering)
    texts = tokenizer.batch_decode([list(prompt) for prompt in prompts])
    scored: list[dict[str, Any]] = [
        {"id": item.id, "task": item.task, "prompt": text}
        for item, text in zip(items, texts, strict=True)
    ]
    kept = kept or Kept()
    likelihood = {"expected_accuracy", "loglik"} & set(asked.metrics)
    passes = ("greedy_accuracy" in asked.metrics) + bool(likelihood)
    with progress(f"evaluate {title}", total=len(items) * passes, unit="items") as bar:
        if likelihood:
            references = [item.answer for item in items]
            answers = answer_ids(tokenizer, references, [True] * len(items), rendering)
            rows = list(zip(prompts, answers, strict=True))
            context = context_length(model) or math.inf
            for (prompt, answer), item in zip(rows, items, strict=True):
                if (tokens := len(prompt) + len(answer)) > context:
                    raise UserError(
                        f"evaluation item {item.id!r} has {tokens} tokens, more than the context "
                        f"of {name} ({context}); remove the item or use another model"
                    )
            for i, logprob in _logprobs(model, rows, asked, kept, bar).items():
                if "expected_accuracy" in likelihood:
                    scored[i]["expected_accuracy"] = math.exp(logprob)
                if "loglik" in likelihood:
                    scored[i]["loglik"] = logprob / len(items[i].answer.encode())
        if "greedy_accuracy" in asked.metrics:
            found = _greedy(model, tokenizer, prompts, names, asked, kept, bar)
            for i, (reply, ended) in found.items():
                grade = asked.scorer.grade(reply, items[i].answer)
                counts = reply.fault is None and (ended or not asked.scorer.whole)
                scored[i] |= {
                    "greedy_accuracy": grade.score if counts else 0.0,
                    "greedy_answer": str(reply),
                    "reasoning": reply.reasoning,
                    "fault": reply.fault,
                    "extracted": grade.extracted,
                }
    return scored


def _logprobs(
    model: PreTrainedModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    asked: Asked,
    kept: Kept,
    bar: Any,
) -> dict[int, float]:
    """Summed log-probability of each answer, by place."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]) - len(rows[i][1]), i))
    groups = [order[at : at + GROUP] for at in range(0, len(order), GROUP)]
    found: dict[int, float] = {}
    for group in kept.missing("logprob", rows, groups, found):
        part = score_answers(model, [rows[i] for i in group], asked.token_budget)
        for place, logprob in part:
            bar.advance(1, amount=1)
            found[group[place]] = float(logprob)
    return found


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    asked: Asked,
    kept: Kept,
    bar: Any,
) -> dict[int, tuple[Reply, bool]]:
    """(reply, whether it ended) of each greedy answer, by place. UserError: no room for one."""
    reader = AnswerReader(tokenizer)
    room = Room(reader, asked.max_tokens, asked.reasoning_tokens if reader.reasons else 0)
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=room.tokens)
    groups = length_batches([len(p) + room.tokens for p in prompts], asked.token_budget)
    limits = (room.answer, room.reasoning) if room.reasoning else (room.answer,)
    wanted = [(list(prompt), *limits) for prompt in prompts]
    found: dict[int, tuple[list[str | None], bool]] = {}
    for group in kept.missing("reply", wanted, groups, found):
        opened = [reader.opened(prompts[i]) for i in group]
        answers = decode_within_context(
            model,
            tokenizer,
            [prompts[i] for i in group],
            sampling,
            stopped=_full(room, opened) if room.reasoning else None,
        )
        for i, mark, answer in zip(group, opened, answers, strict=True):
            bar.advance(1, amount=1)
            if answer is None:
                raise UserError(
                    f"{names[i]}: its prompt ({len(prompts[i])} tokens) leaves no room for an "
                    f"answer in a context of {context_length(model)} tokens"
                )
            ids = room.cut(answer.ids, mark)
            reply = Reply.of(reader.read(ids, mark))
            found[i] = (reply.kept(), bool(answer.ended) and len(ids) == len(answer.ids))
    return {i: (Reply.read(value), ended) for i, (value, ended) in found.items()}


def _full(room: Room, opened: Sequence[str]) -> Stopped:
    """What ends rows whose answers have had their tokens."""
    return lambda row, ids: room.is_full(ids, opened[row])
