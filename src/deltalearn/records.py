"""The small typed records in which the stages meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn and waits for an answer."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: what an engine is given. `key` identifies it by content."""

    key: str
    prompt: Prompt
    sample: int


@dataclass(frozen=True, slots=True)
class Response:
    """One answer received, or the reason why there is none.

    `finish_reason` is "stop" (the model ended its turn), "length" (cut at max_tokens) or "error";
    `token_ids` exclude the end-of-turn id. `error` is None unless finish_reason is "error".
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a preferred and a dispreferred answer, and where both came from."""

    prompt_id: str
    sample: int
    prompt: tuple[Message, ...]
    chosen: Response
    rejected: Response
