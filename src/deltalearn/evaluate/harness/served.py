"""Asks lm_eval's model at a server, request by request: an answer is kept as soon as it is here.

The requests are those that lm_eval makes, and it reads the replies; how they are asked, paced and
tried again is the client's business (`openai_api`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness import lm_eval_private as private
from deltalearn.evaluate.harness.wanted import REASONING
from deltalearn.evaluate.reply import LOST, Reply
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.reasoning import (
    Parts,
    join_reasoning,
    lost_marks,
    marks_in,
    opening_mark,
    take_apart,
)
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.replies import Fault, message_parts

STOPS = 3  # of the four that the API takes; lm_eval adds the end of the turn
END = 200  # characters of a prompt's end, enough to see a trace that it opens
HARMLESS = "Say hello."  # what shows whether a server refuses a prompt or everybody

Request = tuple[Any, ...]  # of lm_eval: context and options, or context and continuation
Keep = Callable[[int, Any], None]


class Refused(UserError):
    """The server does not answer a request; others it does."""


class Unreachable(UserError):
    """The server answers nobody, so that nothing more need be asked."""


class Server:
    """lm_eval's model at a server, with as many requests in flight as it was made for."""

    def __init__(self, inner: Any, fields: Mapping[str, Any] | None = None) -> None:
        self.inner = inner
        self._fields = dict(fields or {})  # further ones of every request
        url, chat, _ = inner.base_url.partition("/chat/completions")
        self._path = "chat/completions" if chat else "completions"
        self._endpoint = Endpoint(
            url.removesuffix("/completions"),
            inner.model,
            concurrency=private.concurrency(inner),
            timeout=inner.timeout,
            tries=inner.max_retries,
        )

    def ask(
        self, kind: str, requests: Sequence[Request], keep: Keep, stopped: Callable[[], bool]
    ) -> None:
        """Ask requests of one kind.

        Args:
            kind: generate_until or loglikelihood.
            requests: What lm_eval asks.
            keep: Is called with the place of a request and its value as its reply comes; None: it
                had no text.
            stopped: No further request is begun when it is true.

        Raises:
            Refused: The server did not answer one of them. After a fault no further request is
                begun, and those in flight are waited for.
            Unreachable: It answers nobody, not even something harmless.
        """
        answered, fault = self._asked(kind, requests, keep, stopped)
        if fault is None:
            return
        told = f"{self._endpoint.shown}: {fault.reason}"
        if not (answered or self._answers_harmless(kind, requests[0])):
            raise _unreachable(told)
        raise Refused(f"{told}; what was answered is kept")

    def _answers_harmless(self, kind: str, request: Request) -> int:
        """Whether the server answers something harmless, asked as `request` is."""
        context, how = request
        said: Any = HARMLESS
        if not isinstance(context, str):  # a conversation, of lm_eval's own type
            said = type(context)(json.dumps([{"role": "user", "content": HARMLESS}]))
        return self._asked(kind, [(said, how)], lambda at, value: None, lambda: False)[0]

    def _asked(
        self, kind: str, requests: Sequence[Request], keep: Keep, stopped: Callable[[], bool]
    ) -> tuple[int, Fault | None]:
        """(number of answers, the first fault)."""
        from deltalearn.openai_api.client import Client, ServerUnavailable
        from deltalearn.openai_api.client import Reply as Replied
        from deltalearn.openai_api.runner import ask_all

        faults: list[Fault] = []
        answered = 0

        def take(at: int, outcome: Replied[Any] | Fault) -> None:
            nonlocal answered
            if isinstance(outcome, Fault):
                faults.append(outcome)
            else:
                answered += 1
                keep(at, outcome.value)

        client = Client(
            self._endpoint,
            stop=lambda: bool(faults) or stopped(),
            path=self._path,
            headers=self.inner.header,
            verify=self.inner.verify_certificate,
        )
        try:
            ask_all(client, (self._call(kind, request) for request in requests), take)
        except ServerUnavailable as error:
            raise _unreachable(str(error)) from None
        return answered, faults[0] if faults else None

    def _call(self, kind: str, request: Request) -> tuple[dict[str, Any], Callable[[Any], Any]]:
        """What to send, and how the reply is read."""
        if kind == "generate_until":
            context, options = request
            asked = {**options, "until": self._stops(context, options["until"])}
            if reasoning := asked.pop(REASONING, 0):
                asked["max_gen_toks"] += reasoning
            body = private.generation(self.inner, context, asked) | self._fields
            if not body["stop"]:
                del body["stop"]
            return body | self._spelling, partial(self._reply, request)
        return private.likelihood(self.inner, request)

    def _stops(self, context: Any, until: Sequence[str]) -> list[str]:
        """Those that are sent: few enough, and none to a model that may reason.

        Within reasoning they end nothing, but a server looks for them there as well. An answer is
        cut at all of them when it is here.
        """
        reasons = self._reader is None or self._reader.reasons
        return [] if reasons else list(until[:STOPS])

    @cached_property
    def _reader(self) -> AnswerReader | None:
        """Of the tokenizer, if it is here."""
        tokenizer = getattr(self.inner, "tokenizer", None)
        known = hasattr(tokenizer, "added_tokens_decoder")
        return AnswerReader(tokenizer) if known else None

    @cached_property
    def _spelling(self) -> dict[str, Any]:
        """What has a server write marks that are special tokens, which it leaves out by itself."""
        special = self._reader is not None and self._reader.hides_marks
        return {"skip_special_tokens": False} if special else {}

    def _reply(self, request: Request, value: Any) -> Reply | None:
        """The reply to a request; None if the server gave no text."""
        context, options = request
        choice = private.one_choice(value)["choices"][0]
        if "message" in choice:
            text, reasoning = message_parts(choice["message"])
            opened = ""  # the server rendered the prompt
        else:
            text, reasoning = choice["text"], ""
            opened = opening_mark(str(context)[-END:])
        if text is None and not reasoning:
            return None
        text = "" if text is None else text
        if not isinstance(text, str):
            raise TypeError("the text is none")
        until = options["until"]
        if reasoning:
            return Reply.of(Parts(*join_reasoning(reasoning, text)), until)
        if lost_marks(text):
            return Reply("", text, LOST)
        return Reply.of(take_apart(text, marks_in(text), opened), until)


def _unreachable(told: str) -> Unreachable:
    return Unreachable(f"{told}; what was answered is kept, run it again when the server answers")
