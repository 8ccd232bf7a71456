"""Cells as turns: conversations in every shape that tools write them, and HH-RLHF's old text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from deltalearn.records import Message, Unusable, conversation, message_text

HUMAN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")  # of Anthropic's HH-RLHF
ROLES = {"Human": "user", "Assistant": "assistant"}
APART = ("tool_calls", "reasoning_content", "reasoning", "thinking")  # parts of a turn, not text
SHAPES = (("role", "content"), ("from", "value"))  # of a turn: OpenAI's, ShareGPT's
SPEAKERS = {  # ShareGPT's names
    "human": "user", "user": "user", "system": "system", "assistant": "assistant",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
}  # fmt: skip
# Text that can only be meant as a list of turns: JSON, or what Python prints, as in CSV files.
LISTED = re.compile(r"""\s*\[\s*\{\s*(["'])(role|content|from|value)\1\s*:""")


class Unfit(Unusable):
    """A row that is no pair, and the reason by which such rows are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def conversations(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its conversations as lists of turns, each {role, content, ...}.

    A conversation may also be a list's text (JSON, or as Python prints it), ShareGPT's turns
    ({from, value}), one turn without a list, or a struct of lists, as Arrow stores a sequence.

    Raises:
        Unfit: If a cell begins like a conversation and is none.
    """
    return {name: _as_turns(cell, name) for name, cell in row.items()}


def _as_turns(cell: Any, name: str) -> Any:
    if isinstance(cell, str):
        return _as_turns(_listed(cell, name), name) if LISTED.match(cell) else cell
    if isinstance(cell, dict):
        return _of_struct(cell, name)
    if isinstance(cell, list) and cell and all(isinstance(turn, dict) for turn in cell):
        return [_spoken(turn, i, name) for i, turn in enumerate(cell)]
    return cell


def _listed(text: str, name: str) -> Any:
    """The list that a text is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = f"{name!r} begins as a list of turns, and is not whole JSON"
        raise Unfit("wrong_type", reason) from error


def _of_struct(cell: dict[str, Any], name: str) -> Any:
    """The turns of a struct of lists, or of one turn; any other object as it is."""
    for who, what in SHAPES:
        if who not in cell or what not in cell:
            continue
        if not isinstance(cell[who], list):
            return _as_turns([cell], name) if isinstance(cell[who], str) else cell
        lists = {key: value for key, value in cell.items() if isinstance(value, list)}
        if len({len(value) for value in lists.values()}) > 1:
            raise Unfit("wrong_type", f"{name!r} has lists of different lengths for its turns")
        turns = zip(*lists.values(), strict=True)
        return _as_turns([dict(zip(lists, turn, strict=True)) for turn in turns], name)
    return cell


def _spoken(turn: dict[str, Any], index: int, name: str) -> dict[str, Any]:
    """A turn under the names that templates know."""
    if turn.get("role") is not None or not isinstance(turn.get("from"), str):
        return turn
    speaker = turn["from"]
    if speaker not in SPEAKERS:
        raise Unfit("wrong_type", f"turn {index} of {name!r} is from {speaker!r}; known are "
                    f"{', '.join(SPEAKERS)}")  # fmt: skip
    rest = {k: v for k, v in turn.items() if k not in ("from", "value", "role", "content")}
    return {"role": SPEAKERS[speaker], "content": turn.get("value"), **rest}


def transcript(text: str) -> list[Message] | None:
    """The turns of HH-RLHF's text, "Human: ... Assistant: ..."; None if it is another text.

    An empty turn of the assistant at the end, where an answer is to follow, is left out.
    """
    head, *parts = HUMAN.split(text)
    if head.strip() or len(parts) < 4 or parts[0] != "Human":
        return None
    turns = _transcribed(parts)
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def dialogue(cell: Any, name: str) -> tuple[Message, ...]:
    """Read a cell of a row as a conversation of roles and texts, HH-RLHF's text too.

    Args:
        cell: Text, or a list of turns, as `conversations` leaves it.
        name: Its column, for error messages.

    Returns:
        At least one message.

    Raises:
        Unusable: If it is none.
    """
    return conversation((transcript(cell) or cell) if isinstance(cell, str) else cell, name)


def texts_in(cell: Any) -> Iterable[str]:
    """Every text at any depth of a cell; numbers as text, and of turns what they say."""
    if isinstance(cell, dict):
        parts = [cell["content"]] if {"role", "content"} <= cell.keys() else list(cell.values())
        for part in parts:
            yield from texts_in(part)
    elif isinstance(cell, list | tuple):
        for part in cell:
            yield from texts_in(part)
    elif cell is not None and str(cell).strip():
        yield str(cell).strip()


def text_or_turns(cell: Any, name: str) -> str | list[Message]:
    """A cell as text or as a conversation, whose turns keep what a template may read."""
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, list):
        raise Unfit("wrong_type", f"{name!r} is {type(cell).__name__}, not text or a conversation")
    if not cell:
        raise Unfit("blank_prompt", f"{name!r} is an empty conversation")
    return [_turn(turn, i, name) for i, turn in enumerate(cell)]


def _turn(turn: Any, index: int, name: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise Unfit("wrong_type", f"turn {index} of {name!r} has no role")
    turn = without_nulls(turn)
    text = message_text(turn.get("content"))
    if text is not None:
        turn["content"] = text
    elif turn["role"] != "assistant" or "tool_calls" not in turn:
        raise Unfit("wrong_type", f"turn {index} of {name!r} has no text")
    return turn


def without_nulls(value: Any) -> Any:
    """`value` without keys that hold null, at any depth.

    Arrow gives the objects of a column the keys of all rows, null where a row has none. Templates
    would render those nulls, and the same rows would be other tokens than from JSONL.
    """
    if isinstance(value, dict):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def whole_dialogue(side: str | list[Message]) -> list[Message]:
    """A whole conversation; text is taken apart by HH-RLHF's turns."""
    if not isinstance(side, str):
        return side
    head, *parts = HUMAN.split(side)
    if head.strip() or not parts:
        raise Unfit("no_prompt", f"{side[:60]!r} has no prompt and no Human: and Assistant: turns")
    return _transcribed(parts)


def _transcribed(parts: list[str]) -> list[Message]:
    return [
        Message(role=ROLES[role], content=text.removeprefix(" "))
        for role, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def assistant_text(turn: Message) -> str:
    """The text of an assistant's turn that has nothing beside it."""
    if turn["role"] != "assistant":
        raise Unfit("no_answer", f"the last turn is the {turn['role']}'s, not the assistant's")
    if apart := [name for name in APART if turn.get(name)]:
        raise Unfit("no_answer", f"the answer has {apart[0]} beside its text")
    return turn["content"]


def system_apart(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """A system turn at the beginning, if there is one, and the others."""
    first = int(turns[:1] != [] and turns[0]["role"] == "system")
    return turns[:first], turns[first:]
