"""Asks lm_eval's model at a server, request by request: an answer is kept as soon as it is here.

lm_eval alone gives back a whole group or nothing, stores no text as an empty one, and ends with its
client's traceback. The requests are still those that it makes, and it reads the replies.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deltalearn.errors import UserError
from deltalearn.openai_api.errors import NEVER, RETRIED, hide, retry_after, server_message

BUSY = 429
BUSY_TRIES = 8
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
HARMLESS = "Say hello."  # what shows whether a server refuses a prompt or everybody

Request = tuple[Any, ...]  # of lm_eval: context and options, or context and continuation
Keep = Callable[[int, Any], None]


class Refused(UserError):
    """The server does not answer a request; others it does."""


class Unreachable(UserError):
    """The server answers nobody, so that nothing more need be asked."""


@dataclass(eq=False)
class _Fault(Exception):
    reason: str
    again: bool = False  # whether another try may help
    everybody: bool = False
    tries: int = 0  # at least so many
    wait: float = 0.0  # seconds that the server asks for


class Server:
    """lm_eval's model at a server, with as many requests in flight as it was made for."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.concurrency = max(1, inner._concurrent)

    def ask(
        self, kind: str, requests: Sequence[Request], keep: Keep, stopped: Callable[[], bool]
    ) -> None:
        """Call `keep(place, value)` for each request as its reply comes; None: it had no text.

        kind: generate_until or loglikelihood. stopped: no further request is begun when it is true.
        After a fault no further request is begun either, and those in flight are waited for:
        Refused or Unreachable then.
        """
        asyncio.run(self._ask(kind, requests, keep, stopped))

    async def _ask(
        self, kind: str, requests: Sequence[Request], keep: Keep, stopped: Callable[[], bool]
    ) -> None:
        faults: list[_Fault] = []
        answered = 0
        gate = asyncio.Semaphore(self.concurrency)

        async def one(at: int) -> None:
            nonlocal answered
            async with gate:
                if faults or stopped():
                    return
                try:
                    value = await self._tried(session, kind, requests[at])
                except _Fault as fault:
                    faults.append(fault)
                    return
                answered += 1
                keep(at, value)

        async with self._session() as session:
            await asyncio.gather(*(one(at) for at in range(len(requests))))
            if not faults:
                return
            told = f"{self._place}: {faults[0].reason}"
            if any(fault.everybody for fault in faults) or not (
                answered or await self._answers(session, kind, requests[0])
            ):
                raise Unreachable(
                    f"{told}; what was answered is kept, run it again when the server answers"
                )
        raise Refused(f"{told}; what was answered is kept")

    async def _answers(self, session: Any, kind: str, request: Request) -> bool:
        """Whether the server answers something harmless, asked as `request` is."""
        context, how = request
        said: Any = HARMLESS
        if not isinstance(context, str):  # a conversation, of lm_eval's own type
            said = type(context)(json.dumps([{"role": "user", "content": HARMLESS}]))
        try:
            await self._tried(session, kind, (said, how))
        except _Fault:
            return False
        return True

    # -- one request -------------------------------------------------------------------------

    async def _tried(self, session: Any, kind: str, request: Request) -> Any:
        """The value of a request, after as many tries as lm_eval's model is set to."""
        payload, read = self._prepared(kind, request)
        attempt = 0
        while True:
            try:
                return await self._once(session, payload, read)
            except _Fault as fault:
                attempt += 1
                if not fault.again or attempt >= max(self.inner.max_retries, fault.tries):
                    raise
                wait = fault.wait or min(0.5 * 2**attempt, 10)
                await asyncio.sleep(min(wait, LONGEST_WAIT))

    async def _once(self, session: Any, payload: Any, read: Callable[[Any], Any]) -> Any:
        import aiohttp

        inner = self.inner
        try:
            async with session.post(inner.base_url, json=payload, headers=inner.header) as reply:
                status, headers = reply.status, reply.headers
                body = self._hidden(await reply.read())
        except TimeoutError:
            raise _Fault(f"no answer within {inner.timeout} s", again=True) from None
        except (aiohttp.ClientError, ValueError) as error:
            gone = isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)
            raise _Fault(f"{type(error).__name__}: {error}", again=True, everybody=gone) from None
        if status != 200:
            raise _Fault(
                f"HTTP {status}: {server_message(body)[0] or '(nothing)'}",
                again=status in RETRIED,
                everybody=status in NEVER,
                tries=BUSY_TRIES if status == BUSY else 0,
                wait=retry_after(headers) or 0.0,
            )
        try:
            return read(json.loads(body))
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            what = f"HTTP 200, but no completion ({type(error).__name__}: {error})"
            raise _Fault(f"{what}: {server_message(body)[0]}", again=True) from None

    def _prepared(self, kind: str, request: Request) -> tuple[Any, Callable[[Any], Any]]:
        """(what to send, how to read the reply)."""
        inner = self.inner
        if kind == "generate_until":
            context, options = request
            messages = [context]
            if inner.tokenized_requests:
                room = inner.max_length - options.get("max_gen_toks", inner._max_gen_toks)
                ids = inner.tok_encode(context, add_special_tokens=inner.add_bos_token)
                messages = [ids[-room:]]
            options = copy.deepcopy(options)  # lm_eval takes out of it what it has read
            made = inner._create_payload(
                inner.create_message(messages), generate=True, gen_kwargs=options, seed=inner._seed
            )
            return made, self._text
        ids, lengths, _ = inner.batch_loglikelihood_requests(
            [[(request, *inner._encode_pair(*request))]]
        )
        made = inner._create_payload(inner.create_message(ids), generate=False, seed=inner._seed)
        return made, lambda value: inner.parse_logprobs(
            outputs=_one(value), tokens=ids, ctxlens=lengths
        )[0]

    def _text(self, value: Any) -> str | None:
        """The text of a reply; None if the server gave null for it."""
        choice = _one(value)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if text is None:
            return None
        if not isinstance(text, str):
            raise TypeError("the text is none")
        return self.inner.parse_generations(_one(value))[0]

    # -- the connection ----------------------------------------------------------------------

    def _session(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.concurrency, ssl=self.inner.verify_certificate
            ),
            timeout=aiohttp.ClientTimeout(total=self.inner.timeout),
        )

    @property
    def _place(self) -> str:
        """The address, without what may be secret in it."""
        parts = urlsplit(self.inner.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _hidden(self, said: bytes) -> bytes:
        """What the server said without the key, which some repeat."""
        sent = [str(self.inner.api_key or ""), *map(str, self.inner.header.values())]
        for secret in sent:
            said = hide(said, secret.removeprefix("Bearer ").strip() or None)
        return said


def _one(value: Any) -> dict[str, Any]:
    """A reply of one choice, numbered as lm_eval wants it."""
    return {"choices": [{**value["choices"][0], "index": 0}]}
