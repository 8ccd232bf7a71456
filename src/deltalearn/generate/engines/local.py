"""Parts shared by engines that run a model from its files: prompts to ids, ids to responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.generate.stage import failed
from deltalearn.lm.chat import prompt_ids_or_refusals
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.render import PLAIN, Refusal
from deltalearn.lm.turn import turn_of
from deltalearn.records import Rendering, Request, Response

SHOWN = 300  # characters of an answer that is an error


class LocalPrompts:
    """Ids of the requests' prompts, by the model's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._known: dict[str, list[int] | Refusal] = {}

    @cached_property
    def space(self) -> str:
        """White space that the template puts before answers, so that the model writes it too."""
        try:
            before = turn_of(self._tokenizer, self._rendering).before
        except UserError:  # a template that nothing can be trained with can be asked all the same
            return ""
        return before if before.isspace() else ""

    def _render(self, requests: Sequence[Request]) -> list[list[int] | Refusal]:
        missing = [r for r in requests if r.key not in self._known]
        if missing:
            messages = [r.messages for r in missing]
            found = prompt_ids_or_refusals(self._tokenizer, messages, self._rendering)
            # Only what was asked for last is kept: a window's prompts, whatever the number of all.
            known = {r.key: self._known[r.key] for r in requests if r.key in self._known}
            new = {r.key: ids for r, ids in zip(missing, found, strict=True)}
            self._known = known | new
        return [self._known[r.key] for r in requests]

    def sizes(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of each prompt; 0 for one that the template refuses."""
        return [0 if isinstance(ids, Refusal) else len(ids) for ids in self._render(requests)]

    def ids_or_errors(
        self, requests: Sequence[Request]
    ) -> tuple[dict[str, list[int]], dict[str, Response]]:
        """Prompt ids by key, and error responses for prompts that the template refuses."""
        ids, errors = {}, {}
        for request, found in zip(requests, self._render(requests), strict=True):
            if isinstance(found, Refusal):
                errors[request.key] = failed(request.key, 0, "refused", found.reason)
            else:
                ids[request.key] = found
        return ids, errors


def answer_of(
    key: str,
    prompt: Sequence[int],
    ids: Sequence[int] | None,
    ended: bool,
    reader: AnswerReader,
    *,
    space: str = "",
    context: int | None,
    seconds: float | None = None,
    seed: int | None = None,
) -> Response:
    """Make the response of an answer's ids, its reasoning apart, or an error.

    Args:
        key: That of the request.
        prompt: Ids of the prompt.
        ids: Ids of the answer, end-of-turn id excluded; None if there was no room for any.
        ended: True if the model ended its turn.
        reader: Takes the ids apart.
        space: White space before the answer that is the template's and not the answer's.
        context: Most positions of the model, for the error message.
        seconds: Time from asking to having.
        seed: The seed that the engine was given.
    """
    if ids is None:
        reason = f"the prompt has {len(prompt)} tokens, the model's context is {context}"
        return failed(key, len(prompt), "too_long", reason)
    parts = reader.read(ids, reader.opened(prompt))
    if parts.stray is not None:
        reason = f"control token {parts.stray} within the answer: {parts.answer[:SHOWN]!r}"
        fault = failed(key, len(prompt), "control", reason)
        return replace(fault, completion_tokens=len(ids), seconds=seconds, seed=seed)
    return Response(
        key,
        parts.answer if parts.reasoning else parts.answer.removeprefix(space),
        tuple(ids),
        "stop" if ended else "length",
        len(prompt),
        reasoning=parts.reasoning,
        seconds=seconds,
        seed=seed,
    )
