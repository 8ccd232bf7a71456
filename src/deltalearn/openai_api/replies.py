"""What a server's reply means: an answer, a fault to retry, one to record, or the end of it all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from deltalearn.openai_api.errors import (
    NEVER,
    RETRIED,
    SHOWN,
    replace_surrogates,
    retry_after,
    server_message,
)

MOST = 2**32  # no token id, and no number of tokens, is larger

STOP_REASONS = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
LENGTH_REASONS = {"length", "max_tokens"}
UNREACHABLE = {502, 503, 504, 521, 522, 523}  # what gateways say of a server that is not there
UNREAD = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
OUT_OF_QUOTA = {"insufficient_quota", "billing_hard_limit_reached"}


@dataclass(frozen=True)
class Answer:
    """A whole answer. Token ids are given by few servers; usage may be missing (None)."""

    text: str
    reasoning: str
    finish_reason: str
    token_ids: tuple[int, ...]
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(eq=False)
class Fault(Exception):
    """A try that brought no answer.

    Attributes:
        kind: refused (this request), filtered, malformed (no completion), rate_limit, server,
            timeout, connection, fatal (every request would meet it) or stopped (the run has ended).
        reason: What the server said, or did not.
        retry: Whether another try may help.
        wait: Seconds that the server asks for, if it says so.
        unreachable: Whether it looks as if there were no server at all.
        tries: How often the request was asked in all.
    """

    kind: str
    reason: str
    retry: bool = False
    wait: float | None = None
    unreachable: bool = False
    tries: int = 1


T = TypeVar("T")
Read = Callable[[Any], T]  # takes what is wanted out of a reply's JSON


def chat_answer(value: Any) -> Answer:
    """The answer in a chat completion."""
    return _answer(value["choices"][0], value.get("usage") or {})


def read_reply(
    status: int, headers: Mapping[str, str], body: bytes, read: Read[T]
) -> tuple[T, int]:
    """Read the reply to a chat request.

    Args:
        status: Of HTTP.
        headers: Of the reply.
        body: As the server sent it, without what must stay hidden.
        read: Takes what is wanted out of the JSON; any error of it means that it is not there.

    Returns:
        What `read` found, and the tokens that the server counted for it (0: it did not say).

    Raises:
        Fault: There is none.
    """
    if status != 200:
        raise _fault_of(status, headers, body)
    try:
        value = json.loads(body)
        return read(value), _tokens(value)
    except UNREAD as error:
        shown = replace_surrogates(body[:SHOWN].decode(errors="replace"))
        reason = f"HTTP 200, but no completion ({type(error).__name__}: {error}): {shown}"
        raise Fault("malformed", reason, retry=True) from None


def _answer(choice: dict[str, Any], usage: dict[str, Any]) -> Answer:
    message = choice["message"]
    reason = choice.get("finish_reason")
    text = message.get("content")
    if text is None:
        text = message.get("refusal")  # a model that declines has answered
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if text is None and (reasoning or reason in LENGTH_REASONS):
        text = ""  # it thought, and said nothing or was cut
    if reason == "content_filter":
        raise Fault("filtered", "the server's content filter held the answer back")
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise Fault("malformed", f"no text in the answer (it ended with {reason!r})", retry=True)
    if reason not in STOP_REASONS | LENGTH_REASONS:
        raise Fault("malformed", f"the answer ended with {reason!r}", retry=True)
    ids = tuple(choice.get("token_ids") or ())
    if isinstance(choice.get("stop_reason"), str):
        ids = ()  # ended by a stop string, which the text is without and the ids may be with
    if not all(isinstance(i, int) and 0 <= i < MOST for i in ids):
        raise Fault("malformed", "its token ids are none", retry=True)
    return Answer(
        replace_surrogates(text),
        replace_surrogates(reasoning),
        "stop" if reason in STOP_REASONS else "length",
        ids,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _tokens(value: dict[str, Any]) -> int:
    usage = value.get("usage") or {}
    return sum(_count(usage.get(f"{part}_tokens")) or 0 for part in ("prompt", "completion"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < MOST else None


def _fault_of(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    said, code = server_message(body)
    shown = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if 300 <= status < 400:
        return Fault("fatal", f"{shown}: the server has moved{_target(headers)}; mend the URL")
    if status in NEVER:
        return Fault("fatal", f"{shown}: {NEVER[status]}")
    if code in OUT_OF_QUOTA:
        return Fault("fatal", f"{shown}: the account is used up; add credit to it")
    if status in RETRIED or status >= 500:
        kind = "rate_limit" if status == 429 else "server"
        wait = retry_after(headers)
        return Fault(kind, shown, retry=True, wait=wait, unreachable=status in UNREACHABLE)
    return Fault("refused", shown)


def _target(headers: Mapping[str, str]) -> str:
    """Where a redirect leads; without what may be secret in it."""
    try:
        parts = urlsplit(headers.get("Location", ""))
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    return f" to {parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.hostname else ""
