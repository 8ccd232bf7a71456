"""Answers through a server that speaks OpenAI's API: requests into bodies, replies into responses.

How a server is asked, paced, waited for and given up is the client's business (`openai_api`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from deltalearn.generate.stage import Stop, Window, failed
from deltalearn.lm.reasoning import join_reasoning, lost_marks, split_reasoning
from deltalearn.openai_api.client import Client, Reply
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.errors import SHOWN
from deltalearn.openai_api.replies import Answer, Fault, chat_answer
from deltalearn.openai_api.runner import ask_each
from deltalearn.records import Request, Response, Sampling
from deltalearn.responses.requests import short_seed

LOST = (
    "the server has left the control tokens out and run reasoning and answer together; start it "
    "with the reasoning parser of this model: {!r}"
)
GATHER = 0.05  # seconds over which answers are gathered for one commit; what a crash may cost


@dataclass(eq=False)
class ServedEngine:
    """Answers through a server. One event loop, in the thread that iterates over `answers`.

    Attributes:
        endpoint: The server; its key must be in the environment, or UserError.
        sampling: Settings of the choice of tokens.
        template: Arguments of the chat template, sent with each request.
        say: As a client has it.
    """

    endpoint: Endpoint
    sampling: Sampling
    template: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print
    name = "openai"

    def __post_init__(self) -> None:
        self.endpoint.key()

    def close(self) -> None:
        """Nothing is held between two iterations."""

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Answers as they come, gathered for commits.

        ServerUnavailable, once what came is yielded, if the server refuses everybody (401, 403,
        404, ...) or does not answer at all for `patience` seconds.
        """
        client = Client(self.endpoint, stop=stop, fit=True, say=self.say)
        asked = ask_each(
            client,
            (request for window in windows for request in window.wanted()),
            lambda request: (self._body(request, bool(client.server.vllm)), chat_answer),
            gather=GATHER,
            look=True,
        )
        with closing(asked):
            for group in asked:
                if client.server.vllm:
                    self.name = f"openai (vllm {client.server.vllm})"
                yield [self._response(request, outcome) for request, outcome in group]

    def _body(self, request: Request, token_ids: bool) -> dict[str, Any]:
        """Make the JSON body of a request, with `token_ids` for ids too, as vLLM gives them."""
        endpoint, sampling = self.endpoint, self.sampling
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": list(request.messages),
            endpoint.length_field: sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": short_seed(request)}
        if self.template:
            body["chat_template_kwargs"] = dict(self.template)
        body |= endpoint.body
        if token_ids:
            body["return_token_ids"] = True
        return body

    def _response(self, request: Request, outcome: Reply[Answer] | Fault) -> Response:
        """Make the record of what came of a request."""
        if isinstance(outcome, Fault):
            return _failed(request, outcome)
        answer = outcome.value
        if not answer.reasoning and lost_marks(answer.text):
            return _failed(request, Fault("control", LOST.format(answer.text), tries=outcome.tries))
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
            seconds=round(outcome.seconds, 4),
            seed=short_seed(request) if self.sampling.temperature else None,
            tries=outcome.tries,
        )


def _failed(request: Request, fault: Fault) -> Response:
    reason = fault.reason[: 2 * SHOWN]
    return failed(request.key, 0, fault.kind, reason, tries=fault.tries)
