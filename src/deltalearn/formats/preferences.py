"""Pairs from what people have: preferences of every shape that is read, one small record for all.

Read row by row in constant memory. A row that is no pair is counted by reason with the place of
the first, never a crash. An answer is one turn of text. An implicit prompt is what both
conversations have in common by turns, never by characters, and a string prompt may stand beside
conversations (docs/pitfalls.md). `preference` reads a row for tuning and for importing alike.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats import columns
from deltalearn.formats.rows import data_rows
from deltalearn.formats.turns import (
    Unfit,
    assistant_text,
    system_apart,
    text_or_turns,
    whole_dialogue,
    without_nulls,
)
from deltalearn.records import Message, Unusable

FINISHED = ("stop", "length")
OWN = {"chosen", "rejected"}  # columns of TRL, which may be swapped
READING = 2  # to be raised when the same rows become other pairs: what was prepared is stale then
MEANINGS = {
    "unreadable": "not JSON or not text",
    "no_column": "a column is missing or empty",
    "no_preference": "answers without a preference between them",
    "half_prompt": "a question in two columns",
    "wrong_type": "neither text nor a conversation",
    "blank_prompt": "no prompt, or an empty one",
    "no_prompt": "answers as plain text without a prompt",
    "no_answer": "the last turn is not the assistant's text, or the prompt's is",
    "prompts_differ": "the prompts of both sides differ",
    "several_turns": "an answer of several turns",
    "finish_reason": "a finish reason other than stop or length",
}
REMEDIES = {
    "no_column": "name the columns with --prompt-column, --chosen-column and --rejected-column",
    "no_preference": "import them into a store (deltalearn responses import) and pair the answers "
    "of two models (deltalearn pairs)",
    "no_prompt": "put the prompt into a column of its own (--prompt-column): where it ends cannot "
    "be told from two answers of plain text",
}


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair as text, in the one form that tuning works with.

    prompt: a conversation that waits for an answer, or, in TRL's "standard" format, raw text that
    goes to the model without chat template. The finish reasons are "stop" or "length", or None if
    the source does not say. template: further arguments of the chat template, tools for example.
    """

    where: str
    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    chosen_finish_reason: str | None = None
    rejected_finish_reason: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class SourceCounts:
    """Counts of the rows read; `first`: where and why each reason was met first."""

    read: int = 0
    pairs: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)


class PairReader:
    """The pairs of a source, one after the other; `counts` grows while they are read.

    Iterating again reads the source again. UserError while iterating if the source is missing, or
    at its end if not one row was a pair.
    """

    def __init__(self, source: str, split: str | None, named: Named, limit: int | None) -> None:
        self.source = source
        self.counts = SourceCounts()
        self._split = split
        self._named = named
        self._limit = limit

    def __iter__(self) -> Iterator[PairRow]:
        counts = self.counts = SourceCounts()
        seen: dict[str, None] = {}  # column names, in order
        for row in data_rows(self.source, self._split):
            if counts.pairs == self._limit:
                break
            counts.read += 1
            try:
                if row.problem is not None:
                    raise Unfit("unreadable", row.problem)
                seen |= dict.fromkeys(row.value)
                pair = preference(row.value, self._named, row.where)
            except Unfit as unfit:
                counts.unusable[unfit.reason] += 1
                counts.first.setdefault(unfit.reason, f"{row.where}: {unfit.detail}")
                continue
            counts.pairs += 1
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


def read_pairs_from(
    source: str,
    *,
    split: str | None = None,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    limit: int | None = None,
) -> PairReader:
    """Read pairs of `source`.

    TRL takes plain text in the columns prompt, chosen and rejected as raw text, and so does this.
    Whatever else says that it is a chat (columns of other names, a system turn, conversations)
    makes a prompt of plain text a user's turn.

    Args:
        source: .jsonl, .json or .parquet, a folder of them, a saved data set, or a hub id.
        split: Of a hub id, and of a folder that holds several; default "train".
        prompt_column: Text or a conversation; default: the first there is of `columns.PROMPT`.
        chosen_column: Text or a conversation; default: the first of `columns.CHOSEN`.
        rejected_column: As chosen_column, of `columns.REJECTED`.
        limit: The first so many pairs.

    Returns:
        A reader. A side's finish reason is read from `<its column>_finish_reason`; `tools` and
        `chat_template_kwargs` are handed to the chat template; other columns are ignored.
    """
    return PairReader(source, split, Named(prompt_column, chosen_column, rejected_column), limit)


@dataclass(frozen=True)
class Named:
    """Columns that somebody named; None: look for them."""

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None


NOTHING = Named()


def preference(value: Mapping[str, Any], named: Named = NOTHING, where: str = "") -> PairRow:
    """Read the pair of one row.

    Args:
        value: The row.
        named: Columns that are not to be looked for.
        where: Its place, for messages.

    Raises:
        Unfit: It is no pair; the reason is one of MEANINGS.
    """
    names = (
        _column(value, named.chosen, columns.CHOSEN),
        _column(value, named.rejected, columns.REJECTED),
    )
    turns: str | tuple[Message, ...]
    if named.prompt in (None, "prompt") and _is_raw(value, names):
        turns, chosen, rejected = (value[name] for name in ("prompt", *names))
        if not value["prompt"].strip():
            raise Unfit("blank_prompt", "the prompt is empty")
    else:
        sides = (text_or_turns(value[name], name) for name in names)
        found, chosen, rejected = _split(_prompt(value, named.prompt, names), *sides)
        turns = _checked(value, found)
    return PairRow(
        where, turns, chosen, rejected,
        _finish_reason(value, names[0]), _finish_reason(value, names[1]),
        _template_arguments(value),
    )  # fmt: skip


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


def _is_raw(value: Mapping[str, Any], sides: Sequence[str]) -> bool:
    """Whether a row is in TRL's standard format: plain text in its own columns, and no chat."""
    texts = all(isinstance(value.get(name), str) for name in ("prompt", *sides))
    return texts and {*sides} == OWN and columns.system_text(value) is None


def _prompt(
    value: Mapping[str, Any], named: str | None, sides: Sequence[str]
) -> str | list[Message] | None:
    """The prompt of a row: text, a conversation that waits for an answer, or None."""
    try:
        name = named or columns.prompt_column(value)
    except Unusable as half:
        raise Unfit("half_prompt", str(half)) from None
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


def _split(
    prompt: str | list[Message] | None, chosen: Any, rejected: Any
) -> tuple[list[Message], str, str]:
    """(prompt, chosen answer, rejected answer) of the cells of a row."""
    if prompt is None:
        return _implicit(whole_dialogue(chosen), whole_dialogue(rejected))
    if isinstance(prompt, str):
        if not prompt.strip():
            raise Unfit("blank_prompt", "the prompt is empty")
        turns = _turns_around(prompt, chosen, rejected)
    elif joined := _joined(prompt, chosen, rejected):
        return joined, assistant_text(chosen[-1]), assistant_text(rejected[-1])
    else:
        turns = prompt
    return turns, _answer_after(turns, chosen), _answer_after(turns, rejected)


def _checked(value: Mapping[str, Any], turns: list[Message]) -> tuple[Message, ...]:
    """The turns of a prompt behind its system turn, if they wait for an answer."""
    if not turns:
        raise Unfit("blank_prompt", "there is no turn before the answer")
    if turns[-1]["role"] == "assistant":
        raise Unfit("no_answer", "the prompt ends with the assistant's own turn")
    if any(turn["role"] == "user" and not turn["content"].strip() for turn in turns):
        raise Unfit("blank_prompt", "a turn of the user is empty")
    return columns.behind_system(value, turns)


def _implicit(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Split two conversations after the turns they share; identical ones before their answers."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    rest = max(len(chosen), len(rejected)) - shared
    if rest > 1:
        apart = [side[shared]["role"] for side in (chosen, rejected)]
        reason = "several_turns" if "assistant" in apart else "prompts_differ"
        detail = f"the conversations part at turn {shared}, {rest} turns before the end"
        raise Unfit(reason, detail)
    return chosen[:shared], assistant_text(chosen[-1]), assistant_text(rejected[-1])


def _joined(prompt: list[Message], chosen: Any, rejected: Any) -> list[Message] | None:
    """A prompt of which a column has the one part and both sides the other; None if that is not so.

    The column has the first question and the sides the rest, or the column all and the sides the
    last question; either may have the system turn.
    """
    if isinstance(chosen, str) or isinstance(rejected, str) or chosen[:-1] != rejected[:-1]:
        return None
    turns = chosen[:-1]
    if not turns:
        return None
    if prompt[-len(turns) :] == turns:
        return prompt
    (system, first), (own, rest) = system_apart(prompt), system_apart(turns)
    if rest[: len(first)] == first and (not system or not own or system == own):
        return (own or system) + rest
    return None


def _turns_around(
    prompt: str, chosen: str | list[Message], rejected: str | list[Message]
) -> list[Message]:
    """The conversation that a prompt of plain text stands for.

    Where a side is a whole conversation, its turns before the answer, which must repeat the prompt
    as a user's turn, a system turn and earlier ones included; else the prompt as a user's turn.
    """
    for side in (chosen, rejected):
        if not isinstance(side, str) and len(side) > 1:
            if side[0]["role"] == "assistant":
                raise _several_turns(len(side))
            users = [turn["content"].strip() for turn in side[:-1] if turn["role"] == "user"]
            if prompt.strip() not in users:
                raise Unfit("prompts_differ", "the conversation does not repeat the prompt")
            return side[:-1]
    return [Message(role="user", content=prompt)]


def _answer_after(prompt: list[Message], side: str | list[Message]) -> str:
    """The answer of a side: text, one turn, or the turn that follows `prompt` in a conversation."""
    if isinstance(side, str):
        return side
    if len(side) == 1:
        return assistant_text(side[0])
    if side[0]["role"] == "assistant" and prompt[0]["role"] != "assistant":
        raise _several_turns(len(side))
    shared = next((i for i, (a, b) in enumerate(zip(prompt, side, strict=False)) if a != b), None)
    if shared is not None or len(side) <= len(prompt):
        roles = {prompt[shared]["role"], side[shared]["role"]} if shared is not None else set()
        reason = "several_turns" if roles == {"assistant"} else "prompts_differ"
        raise Unfit(reason, "the conversation does not begin with the prompt's turns")
    if len(side) > len(prompt) + 1:
        raise _several_turns(len(side) - len(prompt))
    return assistant_text(side[-1])


def _several_turns(turns: int) -> Unfit:
    return Unfit("several_turns", f"{turns} turns follow the prompt; an answer is one turn")


def _finish_reason(value: Mapping[str, Any], column: str) -> str | None:
    reason = value.get(f"{column}_finish_reason")
    if reason is not None and reason not in FINISHED:
        raise Unfit("finish_reason", f"{column}_finish_reason is {reason!r}")
    return reason


def _template_arguments(value: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` (a list, or its JSON) and `chat_template_kwargs`, as TRL hands them on."""
    tools, others = value.get("tools"), value.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise Unfit("wrong_type", f"'tools' is not JSON: {error}") from None
    if not isinstance(tools, list | None) or not isinstance(others, dict | None):
        raise Unfit("wrong_type", "'tools' must be a list, 'chat_template_kwargs' an object")
    return without_nulls(({"tools": tools} if tools else {}) | (others or {}))
