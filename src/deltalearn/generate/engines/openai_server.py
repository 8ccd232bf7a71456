"""Ask a server concurrently: a session, its workers, and answers gathered for commits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp

from deltalearn.errors import UserError
from deltalearn.generate.engines.openai_request import Asking, Question
from deltalearn.generate.stage import Stop, Window
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.pacing import Course
from deltalearn.openai_api.probe import Server, look
from deltalearn.records import Request, Response, Sampling

GATHER = 0.05  # seconds over which answers are gathered for one commit; what a crash may cost
GROUP = 1000  # answers at which a commit comes earlier
GRACE = 5.0  # seconds for what is in flight when a run fails


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
        self._question = Question(endpoint, sampling, dict(template or {}), endpoint.key())
        self._say = say

    def close(self) -> None:
        """Nothing is held between two iterations."""

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Answers as they come, gathered for commits.

        UserError, once what came is yielded, if the server refuses everybody (401, 403, 404, ...)
        or does not answer at all for `patience` seconds.
        """
        todo = (request for window in windows for request in window.wanted())
        loop = asyncio.new_event_loop()
        run = _Run(self._question, todo, Course(stop), self._say)
        try:
            server = loop.run_until_complete(run.start())
            if server.vllm:
                self.name = f"openai (vllm {server.vllm})"
            while group := loop.run_until_complete(run.gathered()):
                yield group
            run.raise_failure()
        finally:
            loop.run_until_complete(run.close())
            loop.close()


class _Run:
    """One iteration over the requests: a session and its workers."""

    def __init__(
        self,
        question: Question,
        todo: Iterator[Request],
        course: Course,
        say: Callable[[str], None],
    ) -> None:
        self._question = question
        self._endpoint = question.endpoint
        self._todo = todo
        self._course = course
        self._say = say
        self._done: list[Response] = []
        self._news = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> Server:
        """Open the session, look at the server, and set the workers going."""
        headers = {"Content-Type": "application/json"}
        if self._question.key:
            headers["Authorization"] = f"Bearer {self._question.key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout),
            headers=headers,
        )
        self._server = await look(self._session, self._endpoint)
        if not self._server.lists(self._endpoint.model):
            # Some take names that they do not list; the others say 404 to the first request.
            self._say(self._question.hidden(f"warning: {self._without_model()}"))
        asking = Asking(self._session, self._question, self._server, self._course, self._say)
        for _ in range(self._endpoint.concurrency):
            self._workers.append(asyncio.create_task(self._work(asking)))
        return self._server

    def _without_model(self) -> str:
        model = self._endpoint.model
        return f"{self._endpoint.shown} lists no model {model!r}; it has {self._server.shown}"

    async def gathered(self) -> list[Response]:
        """The next answers; none when there will be no more."""
        while not self._done and not all(w.done() for w in self._workers):
            self._news.clear()
            await self._news.wait()
        waiting = [w for w in self._workers if not w.done()]
        if waiting and self._course.failure:
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
        if self._course.failure:
            text = f"{self._endpoint.shown} ({self._endpoint.model}): {self._course.failure}"
            if not self._server.lists(self._endpoint.model):
                text += f" (it has {self._server.shown})"
            raise UserError(self._question.hidden(text))

    async def close(self) -> None:
        """End workers and connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()

    async def _work(self, asking: Asking) -> None:
        try:
            while not self._course.over:
                request = next(self._todo, None)
                if request is None:
                    break
                response = await asking.ask(request)
                if response is None:
                    break
                self._done.append(response)
                self._news.set()
        finally:
            self._news.set()
