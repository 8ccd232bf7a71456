"""The engine that runs anywhere: Hugging Face transformers in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from deltalearn.lm.chat import answer_texts, prompt_ids
from deltalearn.lm.decode import Sampling, decode
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
        self._ids: dict[str, list[int]] = {}

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Requests of similar prompt length together, longest first."""
        ids = prompt_ids(self._tokenizer, [r.prompt.messages for r in requests])
        self._ids = {r.key: i for r, i in zip(requests, ids, strict=True)}
        lengths = [len(self._ids[r.key]) + self._sampling.max_tokens for r in requests]
        return [[requests[i] for i in b] for b in length_batches(lengths, self._token_budget)]

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """Decode one batch. A prompt that leaves no room in the context becomes an error.

        A prompt that leaves less room than max_tokens is decoded alone, up to the end of the
        context, so that it neither shortens its neighbours nor runs past the last position.
        """
        if self._model is None:
            self._model = load_model(self._files, self._placement)
        context = context_length(self._model) or 2**31
        room = {r.key: context - len(self._ids[r.key]) for r in batch}
        wide = [r for r in batch if room[r.key] >= self._sampling.max_tokens]
        answers = {response.key: response for response in self._decode(wide, self._sampling)}
        for request in batch:
            if room[request.key] <= 0:
                answers[request.key] = self._too_long(request, context)
            elif request.key not in answers:
                sampling = replace(self._sampling, max_tokens=room[request.key])
                answers[request.key] = self._decode([request], sampling)[0]
        return [answers[r.key] for r in batch]

    def _decode(self, batch: Sequence[Request], sampling: Sampling) -> list[Response]:
        if not batch:
            return []
        decoded = decode(
            self._model,
            self._tokenizer,
            [self._ids[r.key] for r in batch],
            sampling,
            seeds=[int(r.key[:SEED_DIGITS], 16) for r in batch],
        )
        texts = answer_texts(self._tokenizer, [answer.ids for answer in decoded])
        return [
            Response(
                key=request.key,
                text=text,
                token_ids=answer.ids,
                finish_reason="stop" if answer.ended else "length",
                prompt_tokens=len(self._ids[request.key]),
            )
            for request, answer, text in zip(batch, decoded, texts, strict=True)
        ]

    def _too_long(self, request: Request, context: int) -> Response:
        tokens = len(self._ids[request.key])
        reason = f"the prompt has {tokens} tokens, the model's context is {context}"
        return Response(request.key, "", (), "error", tokens, reason)

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = None
        if self._placement.device == "cuda":
            torch.cuda.empty_cache()
