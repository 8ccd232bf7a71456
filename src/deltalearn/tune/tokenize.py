"""Pairs as text to pairs as ids, with everything dropped, cut or altered counted.

The rules (docs/pitfalls.md): the prompt is what inference would see, each answer is tokenised by
itself, behind what the template puts before answers, and joined at id level, its end-of-turn id is
there exactly once and only if its generator stopped by itself, and what does not fit is dropped or
cut on both sides alike.
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
from deltalearn.lm.encode import Encoder, fingerprint, puts_space_first
from deltalearn.lm.render import PLAIN, Refusal, prompt_texts
from deltalearn.lm.turn import Turn, turn_of
from deltalearn.records import Rendering
from deltalearn.tune.dataset import Collector, Examples, read_about
from deltalearn.util.files import digest
from deltalearn.util.text_format import words

BATCH = 2000  # pairs tokenised at a time
RULES = 3  # raise it when the same pair becomes other ids, so that no older folder is used
SIDES = ("chosen", "rejected")
REASONS = {  # why a pair is dropped, in the order in which it is tested
    "refused": "the chat template does not take the prompt, or no thoughts behind it",
    "empty": "a side without text, or a prompt without tokens",
    "identical_ids": "both answers the same tokens",
    "prompt_too_long": "the prompt leaves no room for an answer in tune.max_length",
    "too_long": "prompt and answer exceed tune.max_length",
    "identical_after_cut": "both answers the same tokens once cut to tune.max_length",
}

THOUGHTS_CLOSED = (
    "an answer begins with its reasoning, which the chat template closes in the prompt; make pairs "
    "without it (pairs.reasoning: strip), or let the template leave it open (student.template)"
)


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
    rendering: Rendering = PLAIN,
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
        rendering: The student's: arguments of its chat template, which win over those of a row,
            as inference has no row; and the template's day.
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
        UserError: If no pair is left, if, with truncation "error", one is too long, or if the chat
            template has no place for an answer behind its prompt (`lm.turn`).
    """
    about = {}
    if directory is not None:
        how = rendering.content()
        settings = [key, fingerprint(tokenizer), max_length, truncation, how, RULES]
        about = {"key": digest(settings)}
        if key is not None and (found := _prepared(directory, about["key"])):
            return found
    work = _Preparation(tokenizer, rendering, max_length, truncation)
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
        self,
        tokenizer: PreTrainedTokenizerBase,
        rendering: Rendering,
        max_length: int,
        truncation: str,
    ) -> None:
        self.counts = ExampleCounts()
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._max_length = max_length
        self._truncation = truncation
        self._longest = (0, "")  # tokens of the longest prompt with an answer, and its place
        self._text = Encoder(tokenizer)
        self._continued = self._text
        if puts_space_first(tokenizer):
            self._continued = Encoder(tokenizer, continuing=True)
        self._turns: dict[str, Turn] = {}  # by the arguments of rows
        self._raw = Turn(tokenizer.eos_token_id, continuing=True)
        self._start = _start_of_text(tokenizer)
        self._special = _special_ids(tokenizer)
        self._control = {"": 0}  # control tokens in texts that templates put before answers
        self._end_texts: dict[int, tuple[str, ...]] = {}  # ends of turn in text, by a turn's end

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
        turns = [self._raw if raw else self._turn(row) for row in rows]
        chosen, rejected = (self._answer_ids(rows, turns, side) for side in SIDES)
        kept = []
        for row, turn, prompt, *answers in zip(rows, turns, prompts, chosen, rejected, strict=True):
            ended = [row.chosen_finish_reason != "length", row.rejected_finish_reason != "length"]
            if fitted := self._fit(row, prompt, answers, ended, np.array([turn.end], np.int32)):
                kept += fitted
                self.counts.examples += 1
        return kept

    def _rendered(self, row: PairRow) -> Rendering:
        """How a row's conversation is rendered: its arguments under the student's own."""
        return Rendering({**row.template, **self._rendering.arguments}, self._rendering.day)

    def _turn(self, row: PairRow) -> Turn:
        """How answers stand behind a row's prompt."""
        arguments = json.dumps(row.template, default=str)
        if arguments not in self._turns:
            self._turns[arguments] = turn_of(self._tokenizer, self._rendered(row))
        return self._turns[arguments]

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
            how = self._rendered(next(iter(members.values())))
            prompts = [p for row in members.values() if not isinstance(p := row.prompt, str)]
            texts |= zip(members, prompt_texts(self._tokenizer, prompts, how), strict=True)
        accepted = {k: text for k, text in texts.items() if isinstance(text, str)}
        found = {k: text for k, text in texts.items() if not isinstance(text, str)}
        ids = dict(zip(accepted, self._text.encode(list(accepted.values())), strict=True))
        return [ids[k] if k in ids else found[k] for k in keys]

    def _answer_ids(
        self, rows: Sequence[PairRow], turns: Sequence[Turn], side: str
    ) -> list[np.ndarray | None]:
        """Ids of one side's answers, less any end of turn in their text.

        Empty for a blank answer; None if the prompt has closed the reasoning that it begins with.
        """
        bare = [
            self._without_end(getattr(row, side), t) for row, t in zip(rows, turns, strict=True)
        ]
        placed = [
            turn.text(text) if text.strip() else "" for turn, text in zip(turns, bare, strict=True)
        ]
        encoder = self._continued if turns[0].continuing else self._text
        encoded = encoder.encode([text or "" for text in placed])
        special = np.flatnonzero(self._special[encoded.tokens])
        holders = np.searchsorted(encoded.ends, special, side="right")
        found = np.bincount(holders, minlength=len(rows))
        written = [
            self._written(text[: -len(own)], encoder) if text and text.endswith(own) else 0
            for text, own in zip(placed, bare, strict=True)
        ]
        counts = self.counts
        counts.altered_answers += int((~encoded.faithful).sum())
        counts.special_token_answers += int((found > written).sum())
        counts.assumed_ends += [getattr(row, f"{side}_finish_reason") for row in rows].count(None)
        return [None if text is None else i for text, i in zip(placed, encoded, strict=True)]

    def _written(self, before: str, encoder: Encoder) -> int:
        """Control tokens in a text that the template writes before answers."""
        if before not in self._control:
            (ids,) = encoder.encode([before])
            self._control[before] = int(self._special[ids].sum())
        return self._control[before]

    def _without_end(self, text: str, turn: Turn) -> str:
        """An answer whose text ends with an end of turn must not get a second one."""
        if turn.end not in self._end_texts:
            ids = sorted({turn.end, self._tokenizer.eos_token_id})
            self._end_texts[turn.end] = tuple(self._tokenizer.convert_ids_to_tokens(ids))
        ends = self._end_texts[turn.end]
        while (bare := text.rstrip()).endswith(ends):
            text = next(bare.removesuffix(e) for e in ends if bare.endswith(e))
        return text

    def _fit(
        self,
        row: PairRow,
        prompt: np.ndarray | Refusal,
        sides: Sequence[np.ndarray | None],
        ended: Sequence[bool],
        end: np.ndarray,
    ) -> list[np.ndarray] | None:
        """Ids of prompt and answers within max_length; None if the pair is dropped, and counted."""
        drop = self.counts.drop
        if isinstance(prompt, Refusal):
            return drop("refused", row, why=prompt.reason)
        if side := _at_fault([ids is None for ids in sides]):
            return drop("refused", row, side, THOUGHTS_CLOSED)
        answers = [ids for ids in sides if ids is not None]
        if side := _at_fault([not len(ids) for ids in answers]):
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
            why = [
                f"  {words(r)}: {n:,}; first {counts.first[r]}"
                for r, n in counts.dropped.items()
                if n
            ]
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
