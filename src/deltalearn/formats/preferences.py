"""Pairs from what people have: preferences of every shape that is read, one small record for all.

Read row by row in constant memory. A row that is no pair is counted by reason with the place of
the first, never a crash. An answer is one turn of text. An implicit prompt is what both
conversations have in common by turns, never by characters, and a string prompt may stand beside
conversations (docs/pitfalls.md). `preference` reads a row for tuning and for importing alike.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deltalearn.errors import UserError
from deltalearn.formats import columns
from deltalearn.formats.rows import rows
from deltalearn.formats.sides import split_sides
from deltalearn.formats.turns import (
    Unfit,
    conversations,
    text_or_turns,
    transcript,
    without_nulls,
)
from deltalearn.records import Message, Unusable

FINISHED = ("stop", "length")
Text = Literal["chat", "raw", "raw only"]
OWN = {"chosen", "rejected"}  # columns of TRL, which may be swapped
READING = 3  # to be raised when the same rows become other pairs: what was prepared is stale then
MEANINGS = {
    "unreadable": "not JSON or not text",
    "no_column": "a column is missing or empty",
    "no_preference": "answers without a preference between them",
    "half_prompt": "a question in two columns",
    "conversation": "a conversation, where raw text was asked for",
    "wrong_type": "neither text nor a conversation",
    "blank_prompt": "no prompt, or an empty one",
    "no_prompt": "answers as plain text without a prompt",
    "no_answer": "the last turn is not the assistant's text, or the prompt's is",
    "prompts_differ": "the prompts of both sides differ",
    "several_turns": "an answer of several turns",
    "finish_reason": "a finish reason other than stop or length",
}
REMEDIES = {
    "no_column": "name the columns in pairs.prompt_column, chosen_column and rejected_column "
    "(--prompt-column, --chosen-column, --rejected-column)",
    "no_preference": "import them into a store (deltalearn responses import) and pair the answers "
    "of two models (deltalearn pairs)",
    "conversation": "give pairs.chat_template: yes (--chat-template yes)",
    "no_prompt": "put the prompt into a column of its own (--prompt-column): where it ends cannot "
    "be told from two answers of plain text",
}


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair as text, in the one form that tuning works with.

    prompt: a conversation that waits for an answer, or raw text that goes to the model without chat
    template. The finish reasons are "stop" or "length", or None if the source does not say.
    template: further arguments of the chat template, tools for example. plain: prompt and answers
    were text in columns of their own. transcribed: turns were made of HH-RLHF's text.
    """

    where: str
    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    chosen_finish_reason: str | None = None
    rejected_finish_reason: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    transcribed: bool = False


@dataclass
class SourceCounts:
    """Counts of the rows read; `first`: where and why each reason was met first.

    plain, transcribed: pairs of such rows (`PairRow`).
    """

    read: int = 0
    pairs: int = 0
    plain: int = 0
    transcribed: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Named:
    """Columns that somebody named, None: look for them; and what plain text is.

    Attributes:
        prompt_column: Text or a conversation; default: the first there is of `columns.PROMPT`.
        chosen_column: Text or a conversation; default: the first of `columns.CHOSEN`.
        rejected_column: As chosen_column, of `columns.REJECTED`.
        text: What prompts and answers of plain text are, whatever their columns are called: "chat",
            a user's turn and its answers; "raw", for the model as they are; "raw only", the same,
            and conversations are no pairs.
    """

    prompt_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    text: Text = "chat"


NOTHING = Named()


@dataclass(kw_only=True)
class PairReader(Named):
    """The pairs of a source, one after the other; `counts` grows while they are read.

    Iterating again reads the source again. UserError while iterating if the source is missing, or
    at its end if not one row was a pair. A side's finish reason is read from `<its
    column>_finish_reason`; `tools` and `chat_template_kwargs` are handed to the chat template, a
    system column is a turn, and a row with another column that changes the question
    (`columns.CHANGING`) is no pair.

    Attributes:
        source: As for `formats.rows.rows`.
        split: Of a hub id, and of a folder whose names tell splits; default "train".
        ignore_columns: Columns to leave out, though they may change the question.
        limit: The first so many pairs.
        counts: Of the rows read so far.
    """

    source: str = field(kw_only=False)
    split: str | None = None
    ignore_columns: Collection[str] = ()
    limit: int | None = None
    counts: SourceCounts = field(default_factory=SourceCounts, init=False)

    def __iter__(self) -> Iterator[PairRow]:
        counts = self.counts = SourceCounts()
        seen: dict[str, None] = {}  # column names, in order
        for row in rows(self.source, self.split, ignore=self.ignore_columns):
            if counts.pairs == self.limit:
                break
            counts.read += 1
            try:
                if row.problem is not None:
                    raise Unfit("unreadable", row.problem)
                seen |= dict.fromkeys(row.value)
                pair = preference(row.value, self, row.where)
            except Unfit as unfit:
                counts.unusable[unfit.reason] += 1
                counts.first.setdefault(unfit.reason, f"{row.where}: {unfit.detail}")
                continue
            counts.pairs += 1
            counts.plain += pair.plain
            counts.transcribed += pair.transcribed
            yield pair
        if not counts.pairs:
            raise UserError(self._nothing(list(seen)))

    def _nothing(self, columns: Sequence[str]) -> str:
        if not self.counts.read:
            return f"{self.source}: no rows here"
        parts = [f"{self.source}: no usable pair among {self.counts.read:,} rows"]
        for reason, number in self.counts.unusable.most_common():
            parts.append(f"  {MEANINGS[reason]}: {number:,}; first {self.counts.first[reason]}")
        parts.append(f"  columns seen: {', '.join(columns) or 'none'}")
        parts += [f"  {REMEDIES[r]}" for r in self.counts.unusable if r in REMEDIES]
        return "\n".join(parts)


def preference(value: Mapping[str, Any], named: Named = NOTHING, where: str = "") -> PairRow:
    """Read the pair of one row.

    Args:
        value: The row.
        named: Columns that are not to be looked for.
        where: Its place, for messages.

    Raises:
        Unfit: It is no pair; the reason is one of MEANINGS.
    """
    try:
        return _preference(conversations(value), named, where)
    except Unfit:
        raise
    except Unusable as half:
        raise Unfit("half_prompt", str(half)) from None


def _preference(value: Mapping[str, Any], named: Named, where: str) -> PairRow:
    names = (
        _column(value, named.chosen_column, columns.CHOSEN),
        _column(value, named.rejected_column, columns.REJECTED),
    )
    prompt = _prompt(value, named.prompt_column, names)
    column = named.prompt_column or columns.prompt_column(value)
    cells: list[Any] = [prompt, *(text_or_turns(value[name], name) for name in names)]
    plain = all(isinstance(cell, str) for cell in cells)
    transcribed = False
    turns: str | tuple[Message, ...]
    if plain and named.text != "chat":
        turns, chosen, rejected = _raw(value, column, *cells)
    elif named.text == "raw only":
        raise Unfit("conversation", "a conversation, or HH-RLHF's text, and no plain prompt")
    else:
        if isinstance(prompt, str) and (spoken := transcript(prompt)):
            cells[0] = spoken
        transcribed = cells[0] is not prompt or (prompt is None and isinstance(cells[1], str))
        found, chosen, rejected = split_sides(*cells)
        turns = _checked(value, column, found)
    return PairRow(
        where, turns, chosen, rejected,
        _finish_reason(value, names[0]), _finish_reason(value, names[1]),
        _template_arguments(value), plain, transcribed,
    )  # fmt: skip


def _raw(
    value: Mapping[str, Any], column: str | None, prompt: str, chosen: str, rejected: str
) -> tuple[str, str, str]:
    """The three texts of a row, if the prompt is all of the question."""
    if not prompt.strip():
        raise Unfit("blank_prompt", "the prompt is empty")
    turns = columns.whole_question(value, column, [Message(role="user", content=prompt)])
    if len(turns) > 1:
        raise Unfit("half_prompt", "a system column, for which raw text has no place")
    return prompt, chosen, rejected


def has_preference(value: Mapping[str, Any]) -> bool:
    """True if a row has the columns of a pair."""
    return all(columns.first_of(value, names) for names in (columns.CHOSEN, columns.REJECTED))


def _column(value: Mapping[str, Any], named: str | None, known: Sequence[str]) -> str:
    name = named or columns.first_of(value, known)
    if name is None or value.get(name) is None:
        if named is None and columns.first_of(value, (*columns.SEVERAL, *columns.ANSWER)):
            raise Unfit("no_preference", f"answers, but no {known[0]!r}")
        there = ", ".join(map(str, value))
        raise Unfit("no_column", f"no {name or known[0]!r}; there are {there}")
    return name


def _prompt(
    value: Mapping[str, Any], named: str | None, sides: Sequence[str]
) -> str | list[Message] | None:
    """The prompt of a row: text, a conversation that waits for an answer, or None."""
    name = named or columns.prompt_column(value)
    if name is None:
        return None
    if value.get(name) is None:
        raise Unfit("no_column", f"no {name!r}; there are {', '.join(map(str, value))}")
    turns = text_or_turns(value[name], name)
    # Instruction data carries an answer as last turn; the answers of the pair replace it. In TRL's
    # own columns such a prompt is one that the answers would go on with.
    answered = not isinstance(turns, str) and len(turns) > 1 and turns[-1]["role"] == "assistant"
    trl = name == "prompt" and {*sides} == OWN
    return turns[:-1] if answered and not trl else turns


def _checked(
    value: Mapping[str, Any], column: str | None, turns: list[Message]
) -> tuple[Message, ...]:
    """The turns of a prompt behind its system turn, if they wait for an answer."""
    if not turns:
        raise Unfit("blank_prompt", "there is no turn before the answer")
    if turns[-1]["role"] == "assistant":
        raise Unfit("no_answer", "the prompt ends with the assistant's own turn")
    if any(turn["role"] == "user" and not turn["content"].strip() for turn in turns):
        raise Unfit("blank_prompt", "a turn of the user is empty")
    return columns.whole_question(value, column, turns, ("chat_template_kwargs",))


def _finish_reason(value: Mapping[str, Any], column: str) -> str | None:
    reason = value.get(f"{column}_finish_reason")
    if reason is not None and reason not in FINISHED:
        raise Unfit("finish_reason", f"{column}_finish_reason is {reason!r}")
    return reason


def _template_arguments(value: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` (a list, or its JSON) and `chat_template_kwargs`, as TRL hands them on."""
    tools, others = (_of_json(value, name) for name in ("tools", "chat_template_kwargs"))
    if isinstance(tools, list):
        tools = [_of_json({"tools": tool}, "tools") for tool in tools]
    if not isinstance(tools, list | None) or not isinstance(others, dict | None):
        raise Unfit("wrong_type", "'tools' must be a list, 'chat_template_kwargs' an object")
    return without_nulls(({"tools": tools} if tools else {}) | (others or {}))


def _of_json(value: Mapping[str, Any], name: str) -> Any:
    """A cell, or the value that its text is."""
    cell = value.get(name)
    if not isinstance(cell, str) or not cell.strip():
        return cell or None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise Unfit("wrong_type", f"{name!r} is not JSON: {error}") from None
