"""The small typed records that stages pass to each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


class Unusable(Exception):
    """A row that cannot be used as a prompt; the text of the exception says why."""


def conversation(value: Any, column: str) -> tuple[Message, ...]:
    """Read a cell of a row as a conversation.

    Whose turn is last is left to the caller: see `ends_with_user`.

    Args:
        value: A string, read as one user turn, or a list of messages.
        column: Name of the cell's column, for error messages.

    Returns:
        At least one message.

    Raises:
        Unusable: If the cell is neither, or if a message has no role or no text.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise Unusable(f"{column} must be a string or a non-empty list of messages")
    return tuple(_message(turn, i) for i, turn in enumerate(value))


def ends_with_user(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return `messages` if they wait for an answer.

    Raises:
        Unusable: If the last turn is not the user's.
    """
    if messages[-1]["role"] != "user":
        raise Unusable(f"the last turn must be the user's, not the {messages[-1]['role']}'s")
    return messages


def seen_messages(prompt: Iterable[Message], system: str | None) -> tuple[Message, ...]:
    """Put a system turn before a prompt that has none.

    Args:
        prompt: The prompt's own turns.
        system: Text of the system turn; None leaves the prompt as it is.

    Returns:
        All that the model sees.
    """
    turns = tuple(prompt)
    if system is None or turns[0]["role"] == "system":
        return turns
    return (Message(role="system", content=system), *turns)


def refuse_tools(holder: Any, what: str) -> None:
    """Refuse a row or a turn that has tools or calls of tools.

    Only roles and texts are kept, so without its tools it would be another question.

    Args:
        holder: A row or a message; anything but a dict has no tools.
        what: Name of the holder, for the error message.

    Raises:
        Unusable: If there are tools.
    """
    for name in ("tools", "tool_calls") if isinstance(holder, dict) else ():
        cell = holder.get(name)
        if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):  # JSON, not any text
            cell = list(cell.strip("[]{} \t\r\n"))
        if cell and isinstance(cell, list | dict):
            raise Unusable(f"{what} has {name}: tools are not supported")


def message_text(content: Any) -> str | None:
    """The text of a turn's content, in one piece or in parts of text; None if it has none."""
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _message(turn: Any, index: int) -> Message:
    refuse_tools(turn, f"message {index}")
    content = message_text(turn.get("content")) if isinstance(turn, dict) else None
    if content is None:
        raise Unusable(f"message {index} must have a role and a content string")
    if turn.get("role") not in ROLES:
        raise Unusable(f"message {index} has role {turn.get('role')!r}; known: {', '.join(ROLES)}")
    if not content.strip() and turn["role"] == "user":
        raise Unusable(f"message {index} is empty")
    return Message(role=turn["role"], content=content)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn and waits for an answer."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice of tokens.

    Attributes:
        temperature: 0 decodes greedily.
        top_p: Probability of the nucleus that is sampled from, in (0, 1].
        max_tokens: Most tokens of an answer.
    """

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Placement:
    """The device and precision of a model: a torch device name and a dtype name."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Rendering:
    """Arguments and day with which the chat template of one model is rendered, wherever it is.

    Attributes:
        arguments: Arguments of the template, `enable_thinking` for example.
        day: The day that the template takes for today, YYYY-MM-DD; None is the clock's.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    day: str | None = None

    def content(self) -> dict[str, Any]:
        """Make JSON of what is given, for keys and records; empty for a template left alone."""
        given = {"template": dict(self.arguments), "day": self.day}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted, as an engine is given it.

    Attributes:
        key: Identity by content; see `deltalearn.responses.requests.request_key`.
        prompt: The prompt of the prompt set.
        sample: Number of the answer among those to the same prompt, from 0.
        messages: All that the model sees: the prompt, with the system turn that its settings add.
        model: Identity of the model: a fingerprint of its files, or its name at a server.
        settings_json: Canonical JSON of the settings that decide the answer, but for the sample's
            number.
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

    Attributes:
        key: That of the request.
        text: The answer.
        token_ids: Ids of what was written, without the end-of-turn id; empty where the engine gives
            none.
        finish_reason: "stop" (the model ended its turn), "length" (cut at max_tokens) or "error".
        prompt_tokens: Tokens of the prompt.
        error: Why there is no answer; None unless finish_reason is "error".
        reasoning: The thinking trace before the answer, with its marks. `reasoning + text` is all
            that was written, behind an opening mark where the prompt ended with it, and but for a
            mark that closes the answer.
        completion_tokens: Tokens written; None means as many as `token_ids`.
        seconds: Time from asking to having the answer.
        seed: The seed that the engine was given.
        fault: Kind of the error; None unless finish_reason is "error".
        tries: Number of times the request was asked.
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
        """Number of tokens the model wrote."""
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
