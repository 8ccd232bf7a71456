"""Cells as turns: text, conversations and the old HH-RLHF text, with what a template may read."""

from __future__ import annotations

import re
from typing import Any

from deltalearn.records import Message, Unusable, message_text

HUMAN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")  # of Anthropic's HH-RLHF
ROLES = {"Human": "user", "Assistant": "assistant"}
APART = ("tool_calls", "reasoning_content", "reasoning", "thinking")  # parts of a turn, not text


class Unfit(Unusable):
    """A row that is no pair, and the reason by which such rows are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


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
