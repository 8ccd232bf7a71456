"""Pairs of texts to pairs of ids, with every drop counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltalearn.files import digest
from deltalearn.lm.chat import answer_ids, answer_texts, prompt_ids

REASONS = ("too_long", "empty", "identical_ids")
BATCH = 1000  # pairs tokenised at a time


@dataclass(frozen=True, slots=True)
class Example:
    """Ids of one pair. Answers carry the end-of-turn id exactly if their generator ended."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass
class ExampleCounts:
    """What became of the pairs; `altered` answers do not survive a round trip through ids."""

    pairs: int = 0
    examples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    altered: int = 0

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, every reason listed even when zero."""
        return {
            "pairs": self.pairs,
            "examples": self.examples,
            "dropped": {reason: self.dropped[reason] for reason in REASONS},
            "altered_answers": self.altered,
        }


def prepare_examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Mapping[str, Any]], max_length: int
) -> tuple[list[Example], ExampleCounts]:
    """Tokenise rows of the pairs table for the student.

    A pair is dropped, both sides together, if either side with its prompt exceeds `max_length`
    tokens (cutting one side alone would teach length), if an answer has no token, or if both
    answers have the same ids. UserError if the chat template refuses a prompt.
    """
    counts = ExampleCounts()
    examples = []
    for rows in _batched(pairs, BATCH):
        counts.pairs += len(rows)
        names = [f"pair of prompt {row['prompt_id']!r}" for row in rows]
        prompts = prompt_ids(tokenizer, [row["prompt"] for row in rows], names)
        chosen = _side(tokenizer, rows, "chosen", counts)
        rejected = _side(tokenizer, rows, "rejected", counts)
        for prompt, (good, good_bare), (bad, bad_bare) in zip(
            prompts, chosen, rejected, strict=True
        ):
            if not good_bare or not bad_bare:
                counts.dropped["empty"] += 1
            elif len(prompt) + max(len(good), len(bad)) > max_length:
                counts.dropped["too_long"] += 1
            elif good == bad:
                counts.dropped["identical_ids"] += 1
            else:
                examples.append(Example(tuple(prompt), tuple(good), tuple(bad)))
    counts.examples = len(examples)
    return examples, counts


def _side(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    side: str,
    counts: ExampleCounts,
) -> list[tuple[list[int], int]]:
    """(answer ids, how many of them are text) of one side of every row."""
    texts = [row[side][-1]["content"] for row in rows]
    ended = [row[f"{side}_finish_reason"] == "stop" for row in rows]
    ids = answer_ids(tokenizer, texts, ended)
    bare = [i[:-1] if e else i for i, e in zip(ids, ended, strict=True)]
    back = answer_texts(tokenizer, bare)
    counts.altered += sum(a != b for a, b in zip(texts, back, strict=True))
    return [(i, len(b)) for i, b in zip(ids, bare, strict=True)]


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def examples_digest(examples: Iterable[Example]) -> str:
    """Identity of a training set: the ids and their order."""
    return digest([[e.prompt, e.chosen, e.rejected] for e in examples])
