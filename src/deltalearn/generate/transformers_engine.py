"""The engine that runs anywhere: Hugging Face transformers in this process."""

from __future__ import annotations

from collections.abc import Sequence

from deltalearn.lm.chat import Refusal, answer_texts, prompt_ids_or_refusals
from deltalearn.lm.decode import Decoded, Sampling, decode_within_context
from deltalearn.lm.load import Placement, context_length, load_model, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.logprobs import length_batches
from deltalearn.records import Request, Response

SEED_DIGITS = 32  # hexadecimal digits of a request key that seed its sampling: 128 bits


class TransformersEngine:
    """Answers in batches of similar prompt length; the model is loaded at the first batch."""

    name = "transformers"

    def __init__(
        self, files: ModelFiles, placement: Placement, sampling: Sampling, token_budget: int
    ) -> None:
        """token_budget: most tokens, prompts and full-length answers, in one batch."""
        self._files = files
        self._placement = placement
        self._sampling = sampling
        self._token_budget = token_budget
        self._tokenizer = load_tokenizer(files)
        self._model = None
        self._prompts: dict[str, list[int] | Refusal] = {}

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Requests of similar prompt length together, longest first."""
        prompts = prompt_ids_or_refusals(self._tokenizer, [r.prompt.messages for r in requests])
        self._prompts = {r.key: prompt for r, prompt in zip(requests, prompts, strict=True)}
        sizes = [0 if isinstance(prompt, Refusal) else len(prompt) for prompt in prompts]
        lengths = [size + self._sampling.max_tokens for size in sizes]
        return [[requests[i] for i in b] for b in length_batches(lengths, self._token_budget)]

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """Decode one batch. A prompt that is refused or leaves no room becomes an error."""
        answers = {
            r.key: self._error(r.key, 0, refusal.reason)
            for r in batch
            if isinstance(refusal := self._prompts[r.key], Refusal)
        }
        answers |= self._decode([r.key for r in batch if r.key not in answers])
        return [answers[r.key] for r in batch]

    def _decode(self, keys: Sequence[str]) -> dict[str, Response]:
        if self._model is None:
            self._model = load_model(self._files, self._placement)
        seeds = [int(key[:SEED_DIGITS], 16) for key in keys]
        prompts = [self._prompts[key] for key in keys]
        decoded = decode_within_context(
            self._model, self._tokenizer, prompts, self._sampling, seeds
        )
        return {
            key: self._response(key, len(prompt), answer)
            for key, prompt, answer in zip(keys, prompts, decoded, strict=True)
        }

    def _response(self, key: str, prompt_tokens: int, answer: Decoded | None) -> Response:
        if answer is None:
            context = context_length(self._model)
            reason = f"the prompt has {prompt_tokens} tokens, the model's context is {context}"
            return self._error(key, prompt_tokens, reason)
        (text,) = answer_texts(self._tokenizer, [answer.ids])
        finish_reason = "stop" if answer.ended else "length"
        return Response(key, text, answer.ids, finish_reason, prompt_tokens)

    @staticmethod
    def _error(key: str, prompt_tokens: int, reason: str) -> Response:
        return Response(key, "", (), "error", prompt_tokens, reason)
