"""The small typed records in which the stages meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Unusable(Exception):
    """A row that is no prompt; the text says why."""


def conversation(value: Any, column: str) -> tuple[Message, ...]:
    """The cell of `column`, a string or a list of messages, as messages; Unusable if it is neither.

    Whose turn is last is left to the caller: see `ends_with_user`.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise Unusable(f"{column} must be a string or a non-empty list of messages")
    return tuple(_message(turn, i) for i, turn in enumerate(value))


def ends_with_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """`messages`, if they wait for an answer; Unusable otherwise."""
    if messages[-1]["role"] != "user":
        raise Unusable(f"the last turn must be the user's, not the {messages[-1]['role']}'s")
    return messages


def seen_messages(prompt: Iterable[Message], system: str | None) -> tuple[Message, ...]:
    """The prompt's turns, behind a system turn unless it has its own."""
    turns = tuple(prompt)
    if system is None or turns[0]["role"] == "system":
        return turns
    return (Message(role="system", content=system), *turns)


def refuse_tools(holder: Any, what: str) -> None:
    """Unusable if a row or a turn has tools or calls of them.

    Only roles and texts are kept: without its tools it would be another question.
    """
    for name in ("tools", "tool_calls") if isinstance(holder, dict) else ():
        cell = holder.get(name)
        if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):  # JSON, not any text
            cell = list(cell.strip("[]{} \t\r\n"))
        if cell and isinstance(cell, list | dict):
            raise Unusable(f"{what} has {name}: tools are not supported")


def _message(turn: Any, index: int) -> Message:
    refuse_tools(turn, f"message {index}")
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        raise Unusable(f"message {index} must have a role and a content string")
    if turn.get("role") not in ROLES:
        raise Unusable(f"message {index} has role {turn.get('role')!r}; known: {', '.join(ROLES)}")
    if not turn["content"].strip() and turn["role"] == "user":
        raise Unusable(f"message {index} is empty")
    return Message(role=turn["role"], content=turn["content"])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn and waits for an answer."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. temperature 0 is greedy; top_p in (0, 1] keeps the nucleus."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: what an engine is given. `key` identifies it by content.

    `messages` is what the model sees: the prompt's, with the system turn that its settings add.
    `model` is the identity of the model (a fingerprint of its files, or the name under which a
    server knows it). `settings_json` is canonical JSON of the settings that decide the answer, the
    sample's number left out.
    """

    key: str
    prompt: Prompt
    sample: int
    messages: tuple[Message, ...] = ()
    model: str = ""
    settings_json: str = "{}"


@dataclass(frozen=True, slots=True)
class Response:
    """One answer received, or the reason why there is none.

    `finish_reason` is "stop" (the model ended its turn), "length" (cut at max_tokens) or "error".
    `text` is the answer; a thinking trace before it is in `reasoning`, with its marks, so that
    `reasoning + text` is all that was written, behind an opening mark where the prompt ended with
    it. `token_ids` are of what was written, without the end-of-turn id;
    empty where the engine does not give them, while `completion_tokens` counts them. `seconds`
    from asking to having, `seed` what the engine was given, `tries` how often it was asked.
    `error` and its kind, `fault`, are None unless finish_reason is "error".
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    error: str | None = None
    reasoning: str = ""
    completion_tokens: int | None = None  # default: as many as token_ids
    seconds: float | None = field(default=None, compare=False)
    seed: int | None = None
    fault: str | None = None
    tries: int = 1

    @property
    def tokens(self) -> int:
        """How many tokens the model wrote."""
        given = self.completion_tokens
        return len(self.token_ids) if given is None else given


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a preferred and a dispreferred answer, and where both came from."""

    prompt_id: str
    sample: int
    prompt: tuple[Message, ...]
    chosen: Response
    rejected: Response
