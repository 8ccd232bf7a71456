"""Ask a server concurrently: bounded, paced, retried by one policy, every request accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp

from deltalearn.errors import UserError
from deltalearn.generate.requests import short_seed
from deltalearn.generate.served.endpoint import Endpoint, hide
from deltalearn.generate.served.faults import ABSENT, SHOWN, Answer, Fault, read_reply
from deltalearn.generate.served.limits import Health, Pace, backoff
from deltalearn.generate.stage import Stop, Window
from deltalearn.generate.thoughts import join_thought, split_thought
from deltalearn.records import Request, Response, Sampling

GATHER = 0.05  # seconds over which answers are gathered for one commit; what a crash may cost
GROUP = 1000  # answers at which a commit comes earlier
GRACE = 5.0  # seconds for what is in flight when a run fails
LIMITED_TRIES = 100  # rate limits that one request bears
CHARACTERS = 4  # of a token, to estimate a prompt's tokens before the server has counted them
PROBE = aiohttp.ClientTimeout(total=10.0)
LONGEST_QUIET = 900.0  # seconds; a server that wants more is asked another day


class ServedEngine:
    """Answers through a server. One event loop, in the thread that iterates over `answers`."""

    name = "openai"

    def __init__(
        self,
        endpoint: Endpoint,
        sampling: Sampling,
        template: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """UserError if the key is not in the environment."""
        self._endpoint = endpoint
        self._sampling = sampling
        self._template = dict(template or {})
        self._say = say
        self._key = endpoint.key()

    def close(self) -> None:
        """Nothing is held between two iterations."""

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Answers as they come, gathered for commits.

        UserError, once what came is yielded, if the server refuses everybody (401, 403, 404, ...)
        or does not answer at all for `patience` seconds.
        """
        todo = (request for window in windows for request in window.wanted())
        loop = asyncio.new_event_loop()
        run = _Run(self, todo, stop)
        try:
            loop.run_until_complete(run.start())
            while group := loop.run_until_complete(run.gathered()):
                yield group
            run.raise_failure()
        finally:
            loop.run_until_complete(run.close())
            loop.close()


class _Run:
    """One iteration over the requests: a session and its workers."""

    def __init__(self, engine: ServedEngine, todo: Iterator[Request], stop: Stop) -> None:
        self._engine = engine
        self._endpoint = engine._endpoint
        self._key = engine._key
        self._todo = todo
        self._stop = stop
        self._requests = Pace(self._endpoint.rpm)
        self._tokens = Pace(self._endpoint.tpm)
        self._health = Health(self._endpoint.patience)
        self._done: list[Response] = []
        self._news = asyncio.Event()
        self._failure: str | None = None
        self._gives_ids = False
        self._workers: list[asyncio.Task[None]] = []

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the session, look at the server, and set the workers going."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout),
            headers=headers,
        )
        await self._look()
        for _ in range(self._endpoint.concurrency):
            self._workers.append(asyncio.create_task(self._work()))

    async def _look(self) -> None:
        """See whether the server knows the model, where it says so; and what server it is."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
            async with self._session.get(
                f"{self._endpoint.base}/models", allow_redirects=False
            ) as reply:
                if reply.status != 200:
                    return  # the first request will tell
                models = (await reply.json(content_type=None)).get("data") or []
            names = [m.get("id") for m in models if isinstance(m, dict)]
            if names and self._endpoint.model not in names:
                self._failure = (
                    f"the server has no model {self._endpoint.model!r}; it has "
                    f"{', '.join(map(str, names[:8]))}"
                )
            self._gives_ids = any(m.get("owned_by") == "vllm" for m in models)
        if self._gives_ids:
            self._engine.name = f"openai (vllm {await self._version()})"

    async def _version(self) -> str:
        root = self._endpoint.base.rpartition("/")[0]
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
            async with self._session.get(f"{root}/version", allow_redirects=False) as reply:
                return str((await reply.json(content_type=None)).get("version"))[:40]
        return "?"

    async def gathered(self) -> list[Response]:
        """The next answers; none when there will be no more."""
        while not self._done and not all(w.done() for w in self._workers):
            self._news.clear()
            await self._news.wait()
        waiting = [w for w in self._workers if not w.done()]
        if waiting and self._failure:
            _, late = await asyncio.wait(waiting, timeout=GRACE)
            for worker in late:
                worker.cancel()
        elif waiting and len(self._done) < GROUP:
            await asyncio.wait(waiting, timeout=GATHER)
        group, self._done = self._done, []
        return group

    def raise_failure(self) -> None:
        """UserError if the run ended before its time."""
        for worker in self._workers:
            if not worker.cancelled() and (error := worker.exception()):
                raise error
        if self._failure:
            text = hide(self._failure, self._key)
            raise UserError(f"{self._endpoint.shown} ({self._endpoint.model}): {text}")

    async def close(self) -> None:
        """End workers and connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()

    # -- work --------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while not (self._stop() or self._failure):
                request = next(self._todo, None)
                if request is None:
                    break
                response = await self._ask(request)
                if response is None:
                    break
                self._done.append(response)
                self._news.set()
        finally:
            self._news.set()

    async def _ask(self, request: Request) -> Response | None:
        """The response to one request; None if the run has failed meanwhile."""
        began = time.monotonic()
        tries = limited = 0
        while True:
            await self._health.wait()
            if self._failure or (tries + limited and self._stop()):
                return None  # it is asked another day
            try:
                answer = await self._try(request)
            except Fault as fault:
                limited += fault.kind == "rate_limit"
                tries += fault.kind != "rate_limit"
                if self._judge(fault):
                    return None
                worn = tries >= self._endpoint.tries or limited >= LIMITED_TRIES
                if not fault.retry or (worn and await self._is_its_own(fault, began)):
                    return self._failed(request, fault, tries + limited)
                if fault.kind != "rate_limit":
                    await asyncio.sleep(fault.wait or backoff(tries, self._endpoint.wait))
            else:
                seconds = time.monotonic() - began
                return self._answered(request, answer, seconds, tries + limited + 1)

    async def _try(self, request: Request) -> Answer:
        body = self._endpoint.request_body(request, self._engine._sampling, self._engine._template)
        if self._gives_ids:
            body["return_token_ids"] = True
        data = json.dumps(body).encode()
        expected = len(data) / CHARACTERS + self._engine._sampling.max_tokens
        await self._requests.take(1)
        await self._tokens.take(expected)
        url = f"{self._endpoint.base}/chat/completions"
        try:
            async with self._session.post(url, data=data, allow_redirects=False) as reply:
                content = await reply.read()
                status, headers = reply.status, reply.headers
        except TimeoutError:
            reason = f"no answer within {self._endpoint.timeout:g} s"
            raise Fault("timeout", reason, retry=True) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = f"connection lost ({type(error).__name__}: {error})"
            raise Fault("connection", reason, retry=True, absent=True) from None
        answer = read_reply(status, headers, content)
        used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        if used:
            self._tokens.give_back(expected - used)
        return answer

    async def _is_its_own(self, fault: Fault, began: float) -> bool:
        """Whether a fault is the request's own, and not that of a server that is not there.

        It is, if others were answered in the meantime, or if the server answers a plain question.
        Otherwise the request goes on trying, until the server is back or given up.
        """
        if not fault.absent or self._health.good_since(began):
            return True
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.get(
                f"{self._endpoint.base}/models", timeout=PROBE, allow_redirects=False
            ) as reply:
                return reply.status not in ABSENT
        return False

    def _judge(self, fault: Fault) -> bool:
        """Take note of a fault for all requests; whether it ends the run."""
        if fault.kind == "fatal":
            self._failure = self._failure or fault.reason
        elif fault.kind == "rate_limit":
            wait = self._endpoint.wait if fault.wait is None else fault.wait
            if wait > LONGEST_QUIET:
                self._failure = f"{fault.reason}: the server asks to wait {wait:,.0f} s"
            self._health.quiet(wait)
        elif fault.kind in ("server", "timeout", "connection"):
            self._health.bad()
            if self._health.down:
                self._failure = (
                    f"the server has not answered for {self._endpoint.patience:g} s, at last: "
                    f"{fault.reason}. Start it, or mend the URL"
                )
        else:
            self._health.good()
        return self._failure is not None

    def _answered(self, request: Request, answer: Answer, seconds: float, tries: int) -> Response:
        self._health.good()
        ids = answer.token_ids
        if ids and answer.finish_reason == "stop":
            ids = ids[:-1]  # the end of the turn
        if answer.thought:
            thought, text = join_thought(answer.thought, answer.text)
        else:
            thought, text = split_thought(answer.text)
        return Response(
            request.key,
            text,
            ids,
            answer.finish_reason,
            answer.prompt_tokens or 0,
            thought=thought,
            completion_tokens=None if answer.token_ids else answer.completion_tokens,
            seconds=round(seconds, 4),
            seed=short_seed(request) if self._engine._sampling.temperature else None,
            tries=tries,
        )

    def _failed(self, request: Request, fault: Fault, tries: int) -> Response:
        return Response(
            request.key,
            "",
            (),
            "error",
            0,
            hide(fault.reason, self._key)[: 2 * SHOWN],
            completion_tokens=0,
            fault=fault.kind,
            tries=tries,
        )
