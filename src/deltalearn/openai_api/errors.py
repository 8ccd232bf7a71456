"""What OpenAI-compatible servers say when they do not answer, and how a key is kept out of it.

Shared by generation and evaluation, which ask servers in ways of their own.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping

HIDDEN = b"[key]"
SHOWN = 300  # characters of a server's message that are kept
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 507, 508, 520, 521, 522, 523, 524, 529}
NEVER = {  # statuses that every other request would meet too, and what to do about them
    401: "the server does not accept the key; check the variable that key_env names",
    402: "the server wants to be paid; add credit to the account",
    403: "the key may not use this model, or the server is closed to this address",
    404: "the server has no such model or path; check its URL (it ends with its version, as in "
    "/v1) and the model's name there",
    405: "this is no chat endpoint; check the URL (it ends with its version, as in /v1)",
}

FOR_ALL = (  # what some servers say under a status of one request's fault
    (
        re.compile(
            r"model_not_found|\bmodel\b.{0,120}(?:does not exist|not found|is not available)", re.I
        ),
        "the server has no such model; check the model's name there",
    ),
    (re.compile("unexpected endpoint", re.I), NEVER[404]),
    (
        re.compile(r"invalid_api_key|api[ _]key (?:is )?(?:not valid|invalid)|"
                   r"(?:invalid|incorrect) api[ _]key", re.I),
        NEVER[401],
    ),
)  # fmt: skip


def server_message(body: bytes) -> tuple[str, str | None]:
    """(message, code) of an error reply, whatever its shape."""
    text = body[: 20 * SHOWN].decode(errors="replace").strip()
    code = None
    try:
        value = json.loads(text)
        inner = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(inner, dict):
            code = inner.get("code") or inner.get("type")
            text = str(inner.get("message") or inner.get("detail") or text)
        elif inner:
            text = str(inner)
    except ValueError:
        pass
    said = replace_surrogates(" ".join(text.split())[:SHOWN])
    return said, code if isinstance(code, str) else None


def replace_surrogates(text: str) -> str:
    """`text` without halves of surrogate pairs: JSON can write them, and nothing can store them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to be left alone, None if it does not say."""
    milliseconds = headers.get("retry-after-ms", "")
    value = headers.get("Retry-After", "").strip()
    for text, unit in ((milliseconds, 1000.0), (value, 1.0)):
        try:
            return max(0.0, float(text) / unit)
        except ValueError:
            continue
    date = email.utils.parsedate_tz(value) if value else None
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def hide(said: bytes, keys: Iterable[str]) -> bytes:
    """Take keys out of a server's text; some repeat them in their errors or in an answer.

    Before anything is read or cut: a part of a key is to be hidden as well.
    """
    for key in keys:
        for written in (key, key.replace("/", "\\/")):  # as some write it into JSON
            said = said.replace(written.encode(), HIDDEN)
    return said
