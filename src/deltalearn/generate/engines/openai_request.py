"""One request at a server: paced, tried again by one policy, ended as an answer or an error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from deltalearn.lm.reasoning import join_reasoning, split_reasoning
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.errors import SHOWN, hide
from deltalearn.openai_api.pacing import Course, Health, Pace, backoff
from deltalearn.openai_api.probe import Server, is_there, room
from deltalearn.openai_api.replies import Answer, Fault, read_reply
from deltalearn.records import Request, Response, Sampling
from deltalearn.responses.requests import short_seed

LIMITED_TRIES = 100  # rate limits that one request bears
CHARACTERS = 4  # of a token, to estimate a prompt's tokens before the server has counted them
LONGEST_QUIET = 900.0  # seconds; a server that wants more is asked another day
TOLD = 10.0  # seconds; a person is told of longer waits


@dataclass(frozen=True)
class Question:
    """How a model is asked, the same for all its requests."""

    endpoint: Endpoint
    sampling: Sampling
    template: dict[str, Any]
    key: str | None

    def body(self, request: Request, most: int | None, server: Server) -> dict[str, Any]:
        """What is sent. most: tokens of the answer, if fewer than usual."""
        sampling = replace(self.sampling, max_tokens=most) if most else self.sampling
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(request.messages),
            self.endpoint.length_field: sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": short_seed(request)}
        if self.template:
            body["chat_template_kwargs"] = dict(self.template)
        body |= self.endpoint.body
        if server.vllm:
            body["return_token_ids"] = True
        return body

    def hidden(self, text: str) -> str:
        """`text` without the key."""
        return hide(text.encode(errors="replace"), self.key).decode()


class Asking:
    """Asks one request after the other, from any number of workers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        question: Question,
        server: Server,
        course: Course,
        say: Callable[[str], None],
    ) -> None:
        self._session = session
        self._question = question
        self._server = server
        self._course = course
        self._say = say
        self._endpoint = question.endpoint
        self._requests = Pace(self._endpoint.rpm)
        self._tokens = Pace(self._endpoint.tpm)
        self._health = Health(self._endpoint.patience)

    async def ask(self, request: Request) -> Response | None:
        """The response to one request; None if the run ends and it is to be asked another day.

        It has used up its tries only if the server was there when the last of them began: the
        requests that are in flight when a server goes down are not to blame for it.
        """
        began = time.monotonic()
        tries = limited = 0
        most: int | None = None
        there = False
        while await self._may_ask():
            asked = time.monotonic()
            try:
                answer = await self._try(request, most)
            except Fault as fault:
                limited += fault.kind == "rate_limit"
                tries += fault.kind != "rate_limit"
                if self._judge(fault):
                    return None
                if fault.kind == "refused" and most is None:
                    most = await self._room(request)
                    if most is not None:
                        continue
                worn = tries >= self._endpoint.tries or limited >= LIMITED_TRIES
                if not fault.retry or (worn and (there or not fault.absent)):
                    return self._failed(request, fault, tries + limited)
                wait = fault.wait or backoff(tries, self._endpoint.wait)
                if fault.kind != "rate_limit" and not await self._course.pause(wait):
                    return None
                there = not fault.absent
                if fault.absent and tries >= self._endpoint.tries - 1:
                    there = self._health.good_since(asked) or await self._is_there()
            else:
                seconds = time.monotonic() - began
                return self._answered(request, answer, seconds, tries + limited + 1)
        return None

    async def _may_ask(self) -> bool:
        """Wait as long as the server wants quiet; whether the run goes on."""
        while (left := self._health.quiet_left()) > 0:
            if not await self._course.pause(left):
                return False
        return not self._course.over

    async def _try(self, request: Request, most: int | None) -> Answer:
        data = json.dumps(self._question.body(request, most, self._server)).encode()
        expected = len(data) / CHARACTERS + (most or self._question.sampling.max_tokens)
        for pace, units in ((self._requests, 1), (self._tokens, expected)):
            if (wait := pace.take(units)) and not await self._course.pause(wait):
                raise Fault("stopped", "the run ended before it was asked", retry=True)
        url = f"{self._endpoint.base}/chat/completions"
        try:
            async with self._session.post(url, data=data, allow_redirects=False) as reply:
                content = await reply.read()
                status, headers = reply.status, reply.headers
        except TimeoutError:
            reason = f"no answer within {self._endpoint.timeout:g} s"
            raise Fault("timeout", reason, retry=True) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = self._question.hidden(f"connection lost ({type(error).__name__}: {error})")
            raise Fault("connection", reason, retry=True, absent=True) from None
        answer = read_reply(status, headers, hide(content, self._question.key))
        used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
        if used:
            self._tokens.give_back(expected - used)
        return answer

    async def _room(self, request: Request) -> int | None:
        """Tokens for an answer within vLLM's context, if that is why it refused."""
        if not self._server.vllm:
            return None
        body = self._question.body(request, None, self._server)
        left = await room(self._session, self._endpoint, body)
        fits = left is not None and 0 < left < self._question.sampling.max_tokens
        return left if fits else None

    async def _is_there(self) -> bool:
        return await is_there(self._session, self._endpoint)

    def _judge(self, fault: Fault) -> bool:
        """Take note of a fault for all requests; whether the run ends."""
        if fault.kind == "fatal":
            self._course.fail(fault.reason)
        elif fault.kind == "rate_limit":
            self._be_quiet(fault)
        elif fault.kind in ("server", "timeout", "connection"):
            self._health.bad()
            if self._health.down:
                self._course.fail(
                    f"the server has not answered for {self._endpoint.patience:g} s, at last: "
                    f"{fault.reason}. Start it, or mend the URL"
                )
        elif fault.kind != "stopped":
            self._health.good()
        return fault.kind == "stopped" or self._course.failure is not None

    def _be_quiet(self, fault: Fault) -> None:
        wait = self._endpoint.wait if fault.wait is None else fault.wait
        if wait > LONGEST_QUIET:
            self._course.fail(f"{fault.reason}: the server asks to wait {wait:,.0f} s")
        elif wait >= TOLD and self._health.quiet_left() <= 0:
            self._say(f"{self._endpoint.shown} wants to be left alone for {wait:,.0f} s")
        self._health.quiet(wait)

    def _answered(self, request: Request, answer: Answer, seconds: float, tries: int) -> Response:
        self._health.good()
        ids = answer.token_ids
        if ids and answer.finish_reason == "stop":
            ids = ids[:-1]  # the end of the turn
        if answer.reasoning:
            reasoning, text = join_reasoning(answer.reasoning, answer.text)
        else:
            reasoning, text = split_reasoning(answer.text)
        return Response(
            request.key,
            text,
            ids,
            answer.finish_reason,
            answer.prompt_tokens or 0,
            reasoning=reasoning,
            completion_tokens=None if answer.token_ids else answer.completion_tokens,
            seconds=round(seconds, 4),
            seed=short_seed(request) if self._question.sampling.temperature else None,
            tries=tries,
        )

    def _failed(self, request: Request, fault: Fault, tries: int) -> Response:
        return Response(
            request.key,
            "",
            (),
            "error",
            0,
            fault.reason[: 2 * SHOWN],
            completion_tokens=0,
            fault=fault.kind,
            tries=tries,
        )
