"""Ids of an answer to its parts: control tokens carry structure and are never glued away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from deltalearn.lm.reasoning import (
    CHANNEL,
    MARKS,
    TRACES,
    Mark,
    Parts,
    marks_in,
    opening_mark,
    take_apart,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENS = frozenset([*TRACES, CHANNEL])
PROMPT_TOKENS = 16  # of a prompt's end, enough to see a trace that it opens


class AnswerReader:
    """Reads answers of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own has none
        special = {i for i, token in added.items() if token.special} | set(
            tokenizer.all_special_ids
        )
        self._special = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in special}
        plain = {i: str(token) for i, token in added.items() if str(token) in MARKS}
        self._marks = {**plain, **self._special}
        self._own = frozenset(self._marks.values())

    @property
    def reasons(self) -> bool:
        """True if the tokenizer or its chat template knows marks of reasoning."""
        template = str(self._tokenizer.chat_template or "")
        return any(mark in self._own or mark in template for mark in OPENS)

    @property
    def hides_marks(self) -> bool:
        """True if marks of reasoning are special tokens, which decoding leaves out by default."""
        return not OPENS.isdisjoint(self._special.values())

    def opened(self, prompt: Sequence[int]) -> str:
        """The mark that the ids of a prompt end with; see `opening_mark`."""
        return opening_mark(self._text(list(prompt[-PROMPT_TOKENS:])))

    def read(self, ids: Sequence[int], opened: str = "") -> Parts:
        """Take an answer apart.

        Args:
            ids: Its ids, without that of the end of the turn.
            opened: What `opened` says of the prompt.

        Returns:
            Its parts, no control token in the answer; `stray` names one that has no place there.
        """
        written = ""
        marks: list[Mark] = []
        before: list[int] = []
        for is_mark, group in groupby(ids, self._marks.__contains__):
            run = list(group)
            if not is_mark:
                written += self._behind(before, run)
                continue
            for token in run:
                start = len(written)
                written += self._marks[token]
                marks.append(Mark(start, len(written), certain=token in self._special))
            before = run[-1:]
        # What the tokenizer has no token for can only be written as text.
        spelt = [m for m in marks_in(written) if written[m.start : m.end] not in self._own]
        return take_apart(written, sorted([*marks, *spelt], key=lambda m: m.start), opened)

    def answer_start(self, ids: Sequence[int], opened: str = "") -> int:
        """Find where the answer begins among the ids of what was written.

        Args:
            ids: As for `read`.
            opened: As for `read`.

        Returns:
            The number of ids before it; all of them where there is only reasoning.
        """
        parts = self.read(ids, opened)
        if not parts.reasoning:
            return 0
        written = list(ids)
        low, high = 0, len(written)  # of the longest end that is no longer than the answer
        while low < high:
            middle = (low + high) // 2
            if len(self._text(written[middle:])) <= len(parts.answer):
                high = middle
            else:
                low = middle + 1
        return low

    def _behind(self, before: list[int], run: list[int]) -> str:
        """The text of ids that stand behind others, with the space that begins it."""
        if before:
            mark, text = self._text(before), self._text([*before, *run])
            if text.startswith(mark):
                return text[len(mark) :]
        return self._text(run)

    def _text(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
