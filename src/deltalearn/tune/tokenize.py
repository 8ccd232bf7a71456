"""Pairs as text to pairs as ids, with everything dropped, cut or altered counted.

The rules (docs/pitfalls.md): the prompt is what inference would see, each answer is tokenised by
itself and joined at id level, its end-of-turn id is there exactly once and only if its generator
stopped by itself, and what does not fit is dropped or cut on both sides alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairReader, PairRow
from deltalearn.lm.chat import Refusal, answers_continue, end_of_turn, prompt_texts
from deltalearn.lm.encode import Encoder, fingerprint, puts_space_first
from deltalearn.tune.dataset import Collector, Examples, read_about
from deltalearn.util.files import digest

BATCH = 2000  # pairs tokenised at a time
RULES = 2  # raise it when the same pair becomes other ids, so that no older folder is used
SIDES = ("chosen", "rejected")
REASONS = {  # why a pair is dropped, in the order in which it is tested
    "refused": "the chat template does not take the prompt",
    "empty": "a side without text, or a prompt without tokens",
    "identical_ids": "both answers the same tokens",
    "prompt_too_long": "the prompt leaves no room for an answer in tune.max_length",
    "too_long": "prompt and answer exceed tune.max_length",
    "identical_after_cut": "both answers the same tokens once cut to tune.max_length",
}


@dataclass
class ExampleCounts:
    """Counts of what became of the pairs.

    Attributes:
        dropped_by_side: For one-sided reasons the side at fault (`empty:chosen`, `too_long:both`).
        unusable: Rows of the source that were no pairs.
        first: Place where each reason was met first, and why.
        altered_answers: Answers that do not survive a round trip through ids.
        special_token_answers: Answers with text that the tokenizer reads as control tokens.
        plain: Pairs of plain text, in columns of their own.
        raw: Those that are not rendered by the chat template.
        transcribed: Pairs whose turns were made of HH-RLHF's text.
        assumed_ends: Answers without a finish reason, taken to have stopped.
        cut_pairs: Pairs that lost the end of both answers to tune.max_length.
    """

    pairs: int = 0
    examples: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    dropped_by_side: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    altered_answers: int = 0
    special_token_answers: int = 0
    assumed_ends: int = 0
    cut_pairs: int = 0
    plain: int = 0
    raw: int = 0
    transcribed: int = 0

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, every reason listed even when zero."""
        unsaid = {"first", "plain", "raw", "transcribed"}  # on the screen, in words
        return {name: value for name, value in asdict(self).items() if name not in unsaid}

    def drop(self, reason: str, row: PairRow, side: str | None = None, why: str = "") -> None:
        """Count a dropped pair, for a reason of REASONS, and keep why the first one was, in words.

        The side at fault is "chosen", "rejected" or "both".
        """
        self.dropped[reason] += 1
        self.first.setdefault(reason, f"{row.where}: {why or REASONS[reason]}")
        if side:
            key = f"{reason}:{side}"
            self.dropped_by_side[key] = self.dropped_by_side.get(key, 0) + 1


def prepare_examples(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[PairRow],
    max_length: int,
    *,
    truncation: str = "drop",
    directory: Path | None = None,
    key: object = None,
    enough: int | None = None,
    batch: int = BATCH,
) -> tuple[Examples, ExampleCounts]:
    """Tokenise pairs for the student.

    Args:
        tokenizer: The student's.
        rows: Pairs as text.
        max_length: Most tokens of a prompt with one answer.
        truncation: Of pairs that exceed it on either side: "drop" both answers, "cut" both to the
            same number of tokens and leave out their end-of-turn ids (so that cutting teaches
            neither a length nor an end; a prompt is never cut), or "error".
        directory: Keep the result there and map it into memory. If it holds the result of the same
            `key`, tokenizer and settings, it is used as it is.
        key: JSON that identifies `rows`.
        enough: Read no further, at the end of a `batch` of rows, once so many pairs are kept.
        batch: Rows tokenised together.

    Returns:
        The examples, and counts of what became of all pairs.

    Raises:
        UserError: If no pair is left, or, with truncation "error", if one is too long.
    """
    about = {}
    if directory is not None:
        settings = [key, fingerprint(tokenizer), max_length, truncation, RULES]
        about = {"key": digest(settings)}
        if key is not None and (found := _prepared(directory, about["key"])):
            return found
    work = _Preparation(tokenizer, max_length, truncation)
    with Collector(directory) as collector:
        for part in _batches(rows, batch):
            collector.add(work.ids(part))
            if enough is not None and work.counts.examples >= enough:
                break
        counts = work.counts
        if isinstance(rows, PairReader):
            counts.unusable = dict(rows.counts.unusable)
            counts.first = rows.counts.first | counts.first
        work.check()
        return collector.finish({**about, "counts": asdict(counts)}), counts


def _prepared(directory: Path, key: str) -> tuple[Examples, ExampleCounts] | None:
    """The examples of a folder, if they are whole and those of `key`."""
    about = read_about(directory)
    if about.get("key") != key:
        return None
    try:
        return Examples.open(directory), ExampleCounts(**about["counts"])
    except (UserError, KeyError, TypeError):
        return None


def _batches(rows: Iterable[PairRow], size: int) -> Iterator[list[PairRow]]:
    """Rows in order, chats and raw text never together."""
    for _, group in groupby(rows, key=lambda row: isinstance(row.prompt, str)):
        while part := list(islice(group, size)):
            yield part


class _Preparation:
    """One run of `prepare_examples`: the tokenizer's ways, and the counts so far."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str
    ) -> None:
        self.counts = ExampleCounts()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._truncation = truncation
        self._longest = (0, "")  # tokens of the longest prompt with an answer, and its place
        self._text = Encoder(tokenizer)
        self._continued = self._text
        if puts_space_first(tokenizer):
            self._continued = Encoder(tokenizer, continuing=True)
        self._answers = self._continued if answers_continue(tokenizer) else self._text
        ends = {True: tokenizer.eos_token_id, False: end_of_turn(tokenizer)}
        self._ends = {raw: np.array([end], dtype=np.int32) for raw, end in ends.items()}
        self._end_texts = tuple(tokenizer.convert_ids_to_tokens(sorted(set(ends.values()))))
        self._start = _start_of_text(tokenizer)
        self._special = _special_ids(tokenizer)

    def ids(self, rows: Sequence[PairRow]) -> list[np.ndarray]:
        """Prompt, chosen and rejected ids of each pair that is kept, one after the other.

        rows: all chats or all raw text.
        """
        raw = isinstance(rows[0].prompt, str)
        self.counts.pairs += len(rows)
        self.counts.raw += len(rows) if raw else 0
        self.counts.plain += sum(row.plain for row in rows)
        self.counts.transcribed += sum(row.transcribed for row in rows)
        prompts = self._raw_prompts(rows) if raw else self._chat_prompts(rows)
        encoder = self._continued if raw else self._answers
        chosen, rejected = self._answer_ids(rows, encoder)
        kept = []
        for row, prompt, *answers in zip(rows, prompts, chosen, rejected, strict=True):
            ended = [row.chosen_finish_reason != "length", row.rejected_finish_reason != "length"]
            if fitted := self._fit(row, prompt, answers, ended, self._ends[raw]):
                kept += fitted
                self.counts.examples += 1
        return kept

    def _raw_prompts(self, rows: Sequence[PairRow]) -> list[np.ndarray | Refusal]:
        """Raw text after what the tokenizer itself puts before a text, its BOS."""
        start = self._start
        found: list[np.ndarray | Refusal] = []
        for ids in self._text.encode([row.prompt for row in rows if isinstance(row.prompt, str)]):
            has_start = np.array_equal(ids[: len(start)], start)
            found.append(ids if has_start else np.concatenate([start, ids]))
        return found

    def _chat_prompts(self, rows: Sequence[PairRow]) -> list[np.ndarray | Refusal]:
        """Prompts as at inference; equal ones are rendered once."""
        keys = [_key(row) for row in rows]
        groups: dict[str, dict[tuple[str, str], PairRow]] = {}  # one for each set of arguments
        for k, row in zip(keys, rows, strict=True):
            groups.setdefault(k[0], {})[k] = row
        texts: dict[tuple[str, str], str | Refusal] = {}
        for members in groups.values():
            arguments = next(iter(members.values())).template
            prompts = [p for row in members.values() if not isinstance(p := row.prompt, str)]
            texts |= zip(members, prompt_texts(self._tokenizer, prompts, arguments), strict=True)
        accepted = {k: text for k, text in texts.items() if isinstance(text, str)}
        found = {k: text for k, text in texts.items() if not isinstance(text, str)}
        ids = dict(zip(accepted, self._text.encode(list(accepted.values())), strict=True))
        return [ids[k] if k in ids else found[k] for k in keys]

    def _answer_ids(
        self, rows: Sequence[PairRow], encoder: Encoder
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of chosen and rejected answers, less any end of turn that stands in their text."""
        texts = [self._without_end(getattr(row, side)) for side in SIDES for row in rows]
        encoded = encoder.encode(texts)
        counts = self.counts
        counts.altered_answers += int((~encoded.faithful).sum())
        special = np.flatnonzero(self._special[encoded.tokens])
        holders = np.searchsorted(encoded.ends, special, side="right")
        counts.special_token_answers += len(np.unique(holders))
        reasons = [
            r for row in rows for r in (row.chosen_finish_reason, row.rejected_finish_reason)
        ]
        counts.assumed_ends += reasons.count(None)
        answers = list(encoded)
        return answers[: len(rows)], answers[len(rows) :]

    def _without_end(self, text: str) -> str:
        """An answer whose text ends with an end of turn must not get a second one."""
        while (bare := text.rstrip()).endswith(self._end_texts):
            text = next(bare.removesuffix(e) for e in self._end_texts if bare.endswith(e))
        return text

    def _fit(
        self,
        row: PairRow,
        prompt: np.ndarray | Refusal,
        answers: Sequence[np.ndarray],
        ended: Sequence[bool],
        end: np.ndarray,
    ) -> list[np.ndarray] | None:
        """Ids of prompt and answers within max_length; None if the pair is dropped, and counted."""
        drop = self.counts.drop
        if isinstance(prompt, Refusal):
            return drop("refused", row, why=prompt.reason)
        blank = [not getattr(row, side).strip() for side in SIDES]
        if side := _at_fault([b or not len(i) for b, i in zip(blank, answers, strict=True)]):
            return drop("empty", row, side)
        if not len(prompt):
            return drop("empty", row, "prompt")
        if np.array_equal(answers[0], answers[1]):
            return drop("identical_ids", row)
        totals = [len(prompt) + len(i) + e for i, e in zip(answers, ended, strict=True)]
        if side := _at_fault([total > self._max_length for total in totals]):
            self._longest = max(self._longest, (max(totals), row.where))
            room = self._max_length - len(prompt)
            if room <= 0:
                return drop("prompt_too_long", row)
            if self._truncation != "cut":
                return drop("too_long", row, side)
            # To the length of the shorter side, too: else what is cut would still teach length.
            kept = min(room, *map(len, answers))
            answers, ended = [ids[:kept] for ids in answers], (False, False)
            if np.array_equal(answers[0], answers[1]):
                return drop("identical_after_cut", row)
            self.counts.cut_pairs += 1
        return [prompt, *(np.concatenate([i, end]) if e else i
                          for i, e in zip(answers, ended, strict=True))]  # fmt: skip

    def check(self) -> None:
        """UserError if pairs are too long and must not be, or if none is left."""
        counts = self.counts
        too_long = counts.dropped["too_long"] + counts.dropped["prompt_too_long"]
        if self._truncation == "error" and too_long:
            tokens, where = self._longest
            raise UserError(
                f"{too_long:,} of {counts.pairs:,} pairs exceed tune.max_length "
                f"{self._max_length:,}; the longest has {tokens:,} tokens ({where}). Raise "
                "tune.max_length, or let tune.truncation drop or cut them"
            )
        if not counts.examples:
            why = [f"  {r}: {n:,}; first {counts.first[r]}" for r, n in counts.dropped.items() if n]
            raise UserError("\n".join([f"none of {counts.pairs:,} pairs can be trained on", *why]))


def _key(row: PairRow) -> tuple[str, str]:
    """Template arguments and prompt of a row as text, to tell equal ones."""
    return json.dumps(row.template, default=str), json.dumps(row.prompt, default=str)


def _at_fault(faults: Sequence[bool]) -> str | None:
    """Which of the sides: chosen, rejected, both, or None."""
    if all(faults):
        return "both"
    return next((side for side, fault in zip(SIDES, faults, strict=True) if fault), None)


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """What the tokenizer puts before a text: usually its BOS, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return np.array(whole[:before], dtype=np.int32)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(vocabulary,) bool: control tokens, apart from the one for unknown text."""
    ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids |= set(tokenizer.all_special_ids)
    ids.discard(tokenizer.unk_token_id)
    special = np.zeros(max([*tokenizer.get_vocab().values(), *ids]) + 1, dtype=bool)
    special[sorted(ids)] = True
    return special
