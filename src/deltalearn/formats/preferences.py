"""Pairs from what people have: the shapes of text that TRL takes, and columns of a model ladder.

Read row by row in constant memory. A row that is no pair is counted by reason with the place of
the first, never a crash. An answer is one turn of text. An implicit prompt is what both
conversations have in common by turns, never by characters, and a string prompt may stand
beside conversations (docs/pitfalls.md).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import DEFAULT_SPLIT, Row, file_rows, is_saved, rows, split_files
from deltalearn.records import Message
from deltalearn.util.paths import local_path

FINISHED = ("stop", "length")
TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")  # of Anthropic's HH-RLHF
ROLES = {"Human": "user", "Assistant": "assistant"}
APART = ("tool_calls", "reasoning_content", "reasoning", "thinking")  # parts of a turn, not text
MEANINGS = {
    "unreadable": "not JSON or not text",
    "no_column": "a column is missing or empty",
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
    """What became of the rows read; `first`: where and why each reason was met first."""

    read: int = 0
    pairs: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)


class PairReader:
    """The pairs of a source, one after the other; `counts` grows while they are read.

    Iterating again reads the source again. UserError while iterating if the source is missing, or
    at its end if not one row was a pair.
    """

    def __init__(
        self, source: str, split: str | None, columns: _Columns, limit: int | None
    ) -> None:
        self.source = source
        self.counts = SourceCounts()
        self._split = split
        self._columns = columns
        self._limit = limit

    def __iter__(self) -> Iterator[PairRow]:
        counts = self.counts = SourceCounts()
        seen: dict[str, None] = {}  # column names, in order
        for row in _rows(self.source, self._split):
            if counts.pairs == self._limit:
                break
            counts.read += 1
            try:
                if row.problem is not None:
                    raise _Unfit("unreadable", row.problem)
                seen |= dict.fromkeys(row.value)
                pair = self._columns.pair(row)
            except _Unfit as unfit:
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
    """Pairs of `source`: .jsonl, .parquet, a folder of them, a saved data set, or a hub id.

    split: of a hub id, and of a folder that holds several; default "train".
    Without names, the columns are `chosen`, `rejected` and, if there is one, `prompt` (else
    `messages`). Answers are text or conversations; see `PairRow` for what they become. A side's
    finish reason is read from `<its column>_finish_reason`; `tools` and `chat_template_kwargs` are
    handed to the chat template; other columns are ignored. limit: the first so many pairs.

    TRL takes plain text in these columns as raw text, and so does this. Columns of other names (a
    model ladder, say) hold chats: a prompt of plain text is then a user's turn.
    """
    columns = _Columns(prompt_column, chosen_column or "chosen", rejected_column or "rejected")
    return PairReader(source, split, columns, limit)


class _Unfit(Exception):
    """A row that is no pair."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class _Columns:
    prompt: str | None
    chosen: str
    rejected: str

    @property
    def chat(self) -> bool:
        """Whether plain text is a turn of a chat: in any columns but TRL's own."""
        answers = {self.chosen, self.rejected}  # swapped, they are TRL's own still
        return self.prompt not in (None, "prompt") or answers != {"chosen", "rejected"}

    def pair(self, row: Row) -> PairRow:
        """The pair of one row, or _Unfit."""
        value = row.value
        sides = [self._side(value, name) for name in (self.chosen, self.rejected)]
        prompt, chosen, rejected = self._split(self._prompt(value), *sides)
        if not isinstance(prompt, str):
            if not prompt:
                raise _Unfit("blank_prompt", "there is no turn before the answer")
            if prompt[-1]["role"] == "assistant":
                raise _Unfit("no_answer", "the prompt ends with the assistant's own turn")
        return PairRow(
            row.where, prompt, chosen, rejected,
            _finish_reason(value, self.chosen), _finish_reason(value, self.rejected),
            _template_arguments(value),
        )  # fmt: skip

    def _side(self, value: Mapping[str, Any], name: str) -> str | list[Message]:
        if value.get(name) is None:
            raise _Unfit("no_column", f"no {name!r}; there are {', '.join(map(str, value))}")
        return _text_or_turns(value[name], name)

    def _prompt(self, value: Mapping[str, Any]) -> str | list[Message] | None:
        if self.prompt is not None:
            return self._without_answer(self._side(value, self.prompt), self.prompt)
        for name in ("prompt", "messages"):
            if value.get(name) is not None:
                return self._without_answer(_text_or_turns(value[name], name), name)
        return None

    def _without_answer(self, turns: str | list[Message], name: str) -> str | list[Message]:
        """Instruction data carries an answer as last turn; the answers of the pair replace it."""
        if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
            return turns
        return turns[:-1] if self.chat or name == "messages" else turns

    def _split(
        self,
        prompt: str | list[Message] | None,
        chosen: str | list[Message],
        rejected: str | list[Message],
    ) -> tuple[str | tuple[Message, ...], str, str]:
        """(prompt, chosen answer, rejected answer) of the cells of a row."""
        if prompt is None:
            return _implicit(_turns_of(chosen), _turns_of(rejected))
        if isinstance(prompt, str):
            if not prompt.strip():
                raise _Unfit("blank_prompt", "the prompt is empty")
            if isinstance(chosen, str) and isinstance(rejected, str) and not self.chat:
                return prompt, chosen, rejected
            prompt = _turns_around(prompt, chosen, rejected)
        return tuple(prompt), _answer_after(prompt, chosen), _answer_after(prompt, rejected)


def _text_or_turns(cell: Any, name: str) -> str | list[Message]:
    """A cell as text or as a conversation, whose turns keep what a template may read."""
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, list):
        raise _Unfit("wrong_type", f"{name!r} is {type(cell).__name__}, not text or a conversation")
    if not cell:
        raise _Unfit("blank_prompt", f"{name!r} is an empty conversation")
    return [_turn(turn, i, name) for i, turn in enumerate(cell)]


def _turn(turn: Any, index: int, name: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise _Unfit("wrong_type", f"turn {index} of {name!r} has no role")
    turn = _without_nulls(turn)
    content = turn.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        turn["content"] = "".join(part["text"] for part in content)
    elif not isinstance(content, str) and (turn["role"] != "assistant" or "tool_calls" not in turn):
        raise _Unfit("wrong_type", f"turn {index} of {name!r} has no text")
    return turn


def _without_nulls(value: Any) -> Any:
    """`value` without keys that hold null, at any depth.

    Arrow gives the objects of a column the keys of all rows, null where a row has none. Templates
    would render those nulls, and the same rows would be other tokens than from JSONL.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _turns_of(side: str | list[Message]) -> list[Message]:
    """A whole conversation; text is taken apart by HH-RLHF's turns."""
    if not isinstance(side, str):
        return side
    head, *parts = TURN.split(side)
    if head.strip() or not parts:
        raise _Unfit("no_prompt", f"{side[:60]!r} has no prompt and no Human: and Assistant: turns")
    return [
        Message(role=ROLES[role], content=text.removeprefix(" "))
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _implicit(
    chosen: list[Message], rejected: list[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """Split two conversations after the turns they share; identical ones before their answers."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    rest = max(len(chosen), len(rejected)) - shared
    if rest > 1:
        apart = [side[shared]["role"] for side in (chosen, rejected)]
        reason = "several_turns" if "assistant" in apart else "prompts_differ"
        detail = f"the conversations part at turn {shared}, {rest} turns before the end"
        raise _Unfit(reason, detail)
    return tuple(chosen[:shared]), _assistant_text(chosen[-1]), _assistant_text(rejected[-1])


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
                raise _Unfit("prompts_differ", "the conversation does not repeat the prompt")
            return side[:-1]
    return [Message(role="user", content=prompt)]


def _answer_after(prompt: list[Message], side: str | list[Message]) -> str:
    """The answer of a side: text, one turn, or the turn that follows `prompt` in a conversation."""
    if isinstance(side, str):
        return side
    if len(side) == 1:
        return _assistant_text(side[0])
    if side[0]["role"] == "assistant" and prompt[0]["role"] != "assistant":
        raise _several_turns(len(side))
    shared = next((i for i, (a, b) in enumerate(zip(prompt, side, strict=False)) if a != b), None)
    if shared is not None or len(side) <= len(prompt):
        roles = {prompt[shared]["role"], side[shared]["role"]} if shared is not None else set()
        reason = "several_turns" if roles == {"assistant"} else "prompts_differ"
        raise _Unfit(reason, "the conversation does not begin with the prompt's turns")
    if len(side) > len(prompt) + 1:
        raise _several_turns(len(side) - len(prompt))
    return _assistant_text(side[-1])


def _several_turns(turns: int) -> _Unfit:
    return _Unfit("several_turns", f"{turns} turns follow the prompt; an answer is one turn")


def _assistant_text(turn: Message) -> str:
    if turn["role"] != "assistant":
        raise _Unfit("no_answer", f"the last turn is the {turn['role']}'s, not the assistant's")
    if apart := [name for name in APART if turn.get(name)]:
        raise _Unfit("no_answer", f"the answer has {apart[0]} beside its text")
    return turn["content"]


def _finish_reason(value: Mapping[str, Any], column: str) -> str | None:
    reason = value.get(f"{column}_finish_reason")
    if reason is not None and reason not in FINISHED:
        raise _Unfit("finish_reason", f"{column}_finish_reason is {reason!r}")
    return reason


def _template_arguments(value: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` (a list, or its JSON) and `chat_template_kwargs`, as TRL hands them on."""
    tools, others = value.get("tools"), value.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise _Unfit("wrong_type", f"'tools' is not JSON: {error}") from None
    if not isinstance(tools, list | None) or not isinstance(others, dict | None):
        raise _Unfit("wrong_type", "'tools' must be a list, 'chat_template_kwargs' an object")
    return _without_nulls(({"tools": tools} if tools else {}) | (others or {}))


def _rows(source: str, split: str | None) -> Iterator[Row]:
    """Rows of a source of `deltalearn.formats.rows`, or of a folder that `datasets` saved to disk.

    A folder with files of several splits is read like the hub data set that it was.
    """
    folder = local_path(source)
    if not is_saved(folder):
        files = split_files(source, split)
        yield from rows(source, split) if files is None else file_rows(files)
        return
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise a dozen unrelated kinds
        raise UserError(f"{source}: this saved data set does not load: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        split = split or DEFAULT_SPLIT
        if split not in data:
            raise UserError(f"{source}: no split {split!r}; there are {', '.join(data)}")
        data = data[split]
    elif split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on one data set; remove it")
    for number, value in enumerate(data, start=1):
        yield Row(f"{source}: row {number}", value)
