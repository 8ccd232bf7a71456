"""Room for reasoning: tokens that it may take beyond the limit, which is the answer's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalearn.evaluate.reply import reply_notes
from deltalearn.lm.control import AnswerReader

EVERY = 16  # tokens between two looks whether an answer is long enough


@dataclass(frozen=True)
class Room:
    """Tokens that the answers of one benchmark may take, of one model.

    Attributes:
        reader: Of the model's tokenizer.
        answer: Tokens of the answer.
        reasoning: Further tokens, for the reasoning before it.
    """

    reader: AnswerReader
    answer: int
    reasoning: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens that may be written in all."""
        return self.answer + self.reasoning

    def is_full(self, ids: Sequence[int], opened: str) -> bool:
        """Tell whether what is written so far need not go on; looks now and then only.

        Args:
            ids: What is written.
            opened: What `AnswerReader.opened` says of the prompt.
        """
        if not self.reasoning or len(ids) < self.answer or len(ids) % EVERY:
            return False
        return len(self.cut(ids, opened)) < len(ids)

    def cut(self, ids: Sequence[int], opened: str) -> list[int]:
        """Cut what is written where its answer has had its tokens: with a mere limit it ends there.

        Args:
            ids: What is written.
            opened: As for `is_full`.
        """
        if not self.reasoning:
            return list(ids)
        return list(ids[: self.reader.answer_start(ids, opened) + self.answer])


def reasoning_note(reasoned: int, replies: int, tokens: int) -> list[str]:
    """Say how many replies took of the room: a line for the results, if there was any.

    Args:
        reasoned: Replies with reasoning.
        replies: All.
        tokens: Of the room for reasoning.
    """
    if not tokens:
        return []
    return [f"{reasoned:,} of {replies:,} replies reason, in {tokens:,} tokens beyond the limit"]


def notes_of(scored: Sequence[Mapping[str, Any]], tokens: int) -> list[str]:
    """Write the notes on greedy answers to own questions.

    Args:
        scored: Rows with `reasoning` and `fault`.
        tokens: Of the room for reasoning.
    """
    reasoned = sum(bool(row["reasoning"]) for row in scored)
    notes = reasoning_note(reasoned, len(scored), tokens)
    return notes + reply_notes(row["fault"] for row in scored)


def reasoning_settings(tokens: int, limit: int | None) -> dict[str, int]:
    """Make the entry of results that says what reasoning may take beyond a limit.

    Args:
        tokens: `evaluate.reasoning_tokens`.
        limit: Of an answer; None where nothing is written.
    """
    return {"reasoning_tokens": tokens} if tokens and limit else {}
