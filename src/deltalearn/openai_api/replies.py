"""What a server's reply means: an answer, a fault to retry, one to record, or the end of it all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from deltalearn.openai_api.errors import (
    FOR_ALL,
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
BROKEN = {"error", "abort", "aborted", "cancelled"}  # ends that the server is to blame for
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
        most: Tries after which another will not help; None: as many as there are.
        page: Whether a web page came instead of JSON: nothing there speaks this API.
        absent: Whether nothing could be connected to.
        tries: How often the request was asked in all.
    """

    kind: str
    reason: str
    retry: bool = False
    wait: float | None = None
    unreachable: bool = False
    most: int | None = None
    page: bool = False
    absent: bool = False
    tries: int = 1


T = TypeVar("T")
Read = Callable[[Any], T]  # takes what is wanted out of a reply's JSON


def chat_answer(value: Any) -> Answer:
    """The answer in a chat completion."""
    choice, usage = value["choices"][0], value.get("usage") or {}
    message = choice["message"]
    reason = choice.get("finish_reason")
    text, reasoning = message_parts(message)
    if text is None and (reasoning or reason in LENGTH_REASONS):
        text = ""  # it thought, and said nothing or was cut
    if reason == "content_filter":
        raise Fault("filtered", "the server's content filter held the answer back")
    if text is None and message.get("tool_calls"):
        raise Fault("malformed", "the model calls a tool instead of answering")
    if not isinstance(text, str):
        raise Fault("malformed", f"no text in the answer (it ended with {reason!r})")
    if reason not in STOP_REASONS | LENGTH_REASONS:
        raise Fault("malformed", f"the answer ended with {reason!r}", **_once(reason in BROKEN))
    ids = tuple(choice.get("token_ids") or ())
    if isinstance(choice.get("stop_reason"), str):
        ids = ()  # ended by a stop string, which the text is without and the ids may be with
    if not all(isinstance(i, int) and 0 <= i < MOST for i in ids):
        raise Fault("malformed", "its token ids are none")
    return Answer(
        replace_surrogates(text),
        replace_surrogates(reasoning),
        "stop" if reason in STOP_REASONS else "length",
        ids,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


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
    shown = replace_surrogates(body[:SHOWN].decode(errors="replace"))
    try:
        value = json.loads(body)
    except ValueError as error:  # torn, or of something in between; it may not come again
        page = body.lstrip()[:1] == b"<"
        reason = f"HTTP 200, but no JSON ({error}): {shown}"
        raise Fault("malformed", reason, **_once(True), page=page) from None
    if isinstance(value, dict) and value.get("error") and not value.get("choices"):
        raise _fault_of(_status(value["error"]), headers, body)
    try:
        return read(value), _tokens(value)
    except UNREAD as error:  # it was made and paid for, and would be made again
        reason = f"HTTP 200, but no completion ({type(error).__name__}: {error}): {shown}"
        raise Fault("malformed", reason) from None


def _once(again: bool) -> dict[str, Any]:
    """Arguments of a fault that may be gone at a second try, and will not be at a third."""
    return {"retry": again, "most": 2 if again else None}


def _status(error: Any) -> int:
    """The status that an error under a status of 200 would have had; as routers write them."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def message_parts(message: Mapping[str, Any]) -> tuple[str | None, str]:
    """Read a message, its content in one piece or in parts.

    Args:
        message: Of a chat completion.

    Returns:
        (text, reasoning): what the model says, a refusal included, None if it says nothing; and the
        trace that the server gives apart, "" if none.
    """
    text, thoughts = _pieces(message.get("content"))
    if text is None:
        text = message.get("refusal")  # a model that declines has answered
    given = (message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    told = next((value for value in given if value), None) or ""
    if not isinstance(told, str):
        found, inner = _pieces(told)
        told = (found or "") + inner
    return text, told or thoughts


def _pieces(content: Any) -> tuple[str | None, str]:
    """(text, thoughts) of content: a string, a part, or a list of parts; others are left out."""
    if content is None or isinstance(content, str):
        return content, ""
    if isinstance(content, list):
        found = [_pieces(part) for part in content]
        texts = [text for text, _ in found if text is not None]
        return "".join(texts) if texts else None, "".join(thoughts for _, thoughts in found)
    if not isinstance(content, dict):
        raise TypeError(f"content is a {type(content).__name__}")
    if content.get("type") in ("thinking", "reasoning"):
        inner = (content.get(name) for name in ("thinking", "reasoning", "text", "summary"))
        return None, _pieces(next(filter(None, inner), ""))[0] or ""
    text = content.get("text", content.get("refusal"))
    return (text, "") if isinstance(text, str) else (None, "")


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
    for pattern, remedy in FOR_ALL:
        if pattern.search(f"{code} {said}"):
            return Fault("fatal", f"{shown}: {remedy}")
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
