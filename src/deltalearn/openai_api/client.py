"""One request at a server: paced, tried again by one policy, ended as a reply or a typed fault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import aiohttp

from deltalearn.errors import UserError
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.errors import SHOWN, hide
from deltalearn.openai_api.pacing import (
    CHARACTERS,
    Cancellation,
    CircuitBreaker,
    RateLimiter,
    backoff,
)
from deltalearn.openai_api.probe import ServerInfo, is_there, look, room
from deltalearn.openai_api.replies import Fault, Read, read_reply

CONNECT = 10.0  # seconds for a connection
PAGES = 4  # replies, and nothing but web pages, that make it no server: of several requests
LIMITED_TRIES = 100  # rate limits that one request bears
LONGEST_QUIET = 900.0  # seconds; a server that wants more ends the run
TOLD = 10.0  # seconds; a person is told of longer waits
SHORTEST_SECRET = 6  # characters; "EMPTY" and the like are no keys, and words of answers

T = TypeVar("T")
Body = Mapping[str, Any]


class ServerUnavailable(UserError):
    """The server answers nobody: it refuses every request, or is not there."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A reply: the value that was read, after how many tries and seconds."""

    value: T
    tries: int
    seconds: float


@dataclass(eq=False, kw_only=True)
class Client:
    """A session with one server, for any number of tasks of one event loop.

    All requests share the pace, the quiet that the server asks for, and the judgement whether it is
    down; whatever every request would meet ends them all. UserError if the key is not in the
    environment.

    Attributes:
        endpoint: The server and its model.
        stop: Once it is true nothing more is asked, and every wait ends.
        path: Behind the endpoint's URL.
        headers: In place of the endpoint's key; what they hold is hidden like a key.
        verify: Whether a server's certificate must be valid.
        fit: Whether a request that vLLM refuses for its length is asked with fewer tokens.
        say: Is told of a long wait and of a model that the server does not list.
        server: What the server says of itself, once it was asked.
    """

    endpoint: Endpoint = field(kw_only=False)
    stop: Callable[[], bool] = lambda: False
    path: str = "chat/completions"
    headers: Mapping[str, str] | None = None
    verify: bool = True
    fit: bool = False
    say: Callable[[str], None] = print
    server: ServerInfo = field(default_factory=ServerInfo, init=False)

    def __post_init__(self) -> None:
        endpoint = self.endpoint
        self.cancellation = Cancellation(self.stop)
        self._url = f"{endpoint.base}/{self.path}"
        key = endpoint.key()
        auth = self.headers or ({"Authorization": f"Bearer {key}"} if key else {})
        self._headers = {"Content-Type": "application/json", **auth}
        held = {str(value).removeprefix("Bearer ").strip() for value in auth.values()}
        self._secrets = [secret for secret in held if len(secret) >= SHORTEST_SECRET]
        self._requests = RateLimiter(endpoint.rpm)
        self._tokens = RateLimiter(endpoint.tpm)
        self._breaker = CircuitBreaker(endpoint.patience)
        self._told = False
        self._pages = 0

    async def open(self) -> None:
        """Open the session of HTTP connections."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self.verify),
            timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout, sock_connect=CONNECT),
            headers=self._headers,
        )

    async def close(self) -> None:
        """Close the session, if it was opened."""
        if hasattr(self, "_session"):
            await self._session.close()

    async def look(self) -> None:
        """Ask the server what it is (`server`), and say so if it does not list the model."""
        self.server = await look(self._session, self.endpoint)
        if self.server.names:
            self._breaker.good()
        if not self.server.lists(self.endpoint.model):
            # Some take names that they do not list; the others say 404 to the first request.
            lists = f"{self.endpoint.shown} lists no model {self.endpoint.model!r}"
            self.say(self.hidden(f"warning: {lists}; it has {self.server.shown}"))

    async def ask(self, body: Body, read: Read[T]) -> Reply[T]:
        """Ask one request until it is answered.

        It has used up its tries only if the server was there when the last of them began: the
        requests that are in flight when a server goes down are not to blame for it.

        Args:
            body: The JSON to send, whole.
            read: Takes what is wanted out of the reply's JSON (see `read_reply`).

        Raises:
            Fault: There is no answer. Of kind "stopped": the run has ended, ask another day.
        """
        began = time.monotonic()
        tries = limited = 0
        there = False
        while await self._may_ask():
            asked = time.monotonic()
            try:
                value = await self._try(body, read)
            except Fault as fault:
                limited += fault.kind == "rate_limit"
                tries += fault.kind != "rate_limit"
                if self._ends_run(fault):
                    break
                if fault.kind == "refused" and (shorter := await self._fitted(body)):
                    body = shorter
                    continue
                most = min(self.endpoint.tries, fault.most or self.endpoint.tries)
                worn = tries >= most or limited >= LIMITED_TRIES
                if not fault.retry or (worn and (there or not fault.unreachable)):
                    fault.tries = tries + limited
                    raise
                wait = fault.wait or backoff(tries, self.endpoint.wait)
                if fault.kind != "rate_limit" and not await self.cancellation.pause(wait):
                    break
                there = not fault.unreachable
                if fault.unreachable and tries >= self.endpoint.tries - 1:
                    there = self._breaker.good_since(asked) or await is_there(
                        self._session, self.endpoint
                    )
            else:
                self._breaker.good()
                return Reply(value, tries + limited + 1, time.monotonic() - began)
        raise Fault("stopped", "the run ended before it was answered")

    def raise_failure(self) -> None:
        """Raise ServerUnavailable if the run ended before its time."""
        if failure := self.cancellation.failure:
            text = f"{self.endpoint.shown} ({self.endpoint.model}): {failure}"
            if not self.server.lists(self.endpoint.model):
                text += f" (it has {self.server.shown})"
            raise ServerUnavailable(self.hidden(text))

    def hidden(self, text: str) -> str:
        """`text` without the key."""
        return hide(text.encode(errors="replace"), self._secrets).decode()

    async def _may_ask(self) -> bool:
        """Wait as long as the server wants quiet; whether the run goes on."""
        while (left := self._breaker.quiet_left()) > 0:
            if not await self.cancellation.pause(left):
                return False
        return not self.cancellation.over

    async def _try(self, body: Body, read: Read[T]) -> T:
        data = json.dumps(body).encode()
        expected = len(data) / CHARACTERS + body.get(self.endpoint.length_field, 0)
        for pace, units in ((self._requests, 1), (self._tokens, expected)):
            if (wait := pace.take(units)) and not await self.cancellation.pause(wait):
                raise Fault("stopped", "the run ended before it was asked")
        try:
            async with self._session.post(self._url, data=data, allow_redirects=False) as reply:
                content = await reply.read()
                status, headers = reply.status, reply.headers
        except aiohttp.ConnectionTimeoutError:
            reason = f"no connection within {CONNECT:g} s"
            raise Fault("connection", reason, retry=True, unreachable=True, absent=True) from None
        except TimeoutError:
            reason = f"no answer within {self.endpoint.timeout:g} s"
            raise Fault("timeout", reason, retry=True) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = self.hidden(f"connection lost ({type(error).__name__}: {error})")
            absent = isinstance(error, aiohttp.ClientConnectorError)
            raise Fault(
                "connection", reason[: 2 * SHOWN], retry=True, unreachable=True, absent=absent
            ) from None
        value, used = read_reply(status, headers, hide(content, self._secrets), read)
        if used:
            self._tokens.give_back(expected - used)
        return value

    async def _fitted(self, body: Body) -> Body | None:
        """The request within vLLM's context, if that is why it was refused."""
        if not self.fit or not self.server.vllm:
            return None
        field = self.endpoint.length_field
        left = await room(self._session, self.endpoint, body)
        return {**body, field: left} if left is not None and 0 < left < body[field] else None

    def _ends_run(self, fault: Fault) -> bool:
        """Take note of a fault for all requests; whether the run ends."""
        if fault.kind == "fatal":
            self.cancellation.fail(fault.reason)
        elif fault.kind == "rate_limit":
            self._be_quiet(fault)
        elif fault.kind in ("server", "timeout", "connection"):
            self._breaker.bad()
            self._tell_of_waiting(fault)
            if fault.absent and self._breaker.absent:
                self.cancellation.fail(
                    f"nothing answers there: {fault.reason}. Start the server, or mend the URL"
                )
            elif self._breaker.down:
                self.cancellation.fail(
                    f"the server has not answered for {self.endpoint.patience:g} s, at last: "
                    f"{fault.reason}. Start it, or mend the URL"
                )
        elif fault.page and not self._breaker.answered:
            self._pages += 1
            if self._pages >= PAGES:
                self.cancellation.fail(
                    f"{fault.reason}: a web page, and no server of this API; mend the URL (it ends "
                    "with its version, as in /v1)"
                )
        elif fault.kind != "stopped":
            self._breaker.good()
        return fault.kind == "stopped" or self.cancellation.failure is not None

    def _tell_of_waiting(self, fault: Fault) -> None:
        """Say once that nothing was answered yet, and why."""
        if not (self._breaker.answered or self._told):
            self._told = True
            self.say(self.hidden(f"{self.endpoint.shown}: {fault.reason[:SHOWN]}; trying again"))

    def _be_quiet(self, fault: Fault) -> None:
        wait = self.endpoint.wait if fault.wait is None else fault.wait
        if wait > LONGEST_QUIET:
            self.cancellation.fail(f"{fault.reason}: the server asks to wait {wait:,.0f} s")
        elif wait >= TOLD and self._breaker.quiet_left() <= 0:
            self.say(f"{self.endpoint.shown} wants to be left alone for {wait:,.0f} s")
        self._breaker.quiet(wait)
