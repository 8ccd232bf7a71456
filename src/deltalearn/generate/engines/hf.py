"""The engine that runs anywhere: Hugging Face transformers in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from deltalearn.generate.engines.local import LocalPrompts, answer_of
from deltalearn.generate.stage import Stop, Window
from deltalearn.lm.architecture import require_causal
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.decode import decode_within_context
from deltalearn.lm.load import Placement, context_length, load_model, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.logprobs import length_batches
from deltalearn.lm.render import PLAIN
from deltalearn.records import Rendering, Request, Response, Sampling
from deltalearn.responses.requests import long_seed


@dataclass(eq=False)
class TransformersEngine:
    """Answers in batches of similar prompt length; the model is loaded at the first batch.

    Attributes:
        files: The model's files.
        placement: Device and precision.
        sampling: Settings of the choice of tokens.
        token_budget: Most tokens, prompts and full-length answers, in one batch.
        rendering: Arguments of the chat template, and its day.
    """

    files: ModelFiles
    placement: Placement
    sampling: Sampling
    token_budget: int
    rendering: Rendering = PLAIN
    name = f"transformers {version('transformers')}"

    def __post_init__(self) -> None:
        require_causal(self.files)
        self._tokenizer = load_tokenizer(self.files)
        self._prompts = LocalPrompts(self._tokenizer, self.rendering)
        self._reader = AnswerReader(self._tokenizer)
        self._model = None

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Answer window by window; see `Engine.answers`. Each batch is a list of its own."""
        for batch in self.missing_batches(windows):
            if stop():
                return
            yield self.answer(batch)

    def missing_batches(self, windows: Iterator[Window]) -> Iterator[list[Request]]:
        """Name what is missing of each batch.

        Batches are planned over *all* requests of a window. After a crash the remaining ones are
        thus the very ones that an uninterrupted run would have formed, and so are their answers.
        """
        for window in windows:
            for batch in self.batches(window.requests) if window.missing else []:
                if missing := [r for r in batch if r.key in window.missing]:
                    yield missing

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Group requests of similar prompt length, longest first; a pure function."""
        sizes = self._prompts.sizes(requests)
        lengths = [size + self.sampling.max_tokens for size in sizes]
        return [[requests[i] for i in b] for b in length_batches(lengths, self.token_budget)]

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """Decode one batch. A prompt that is refused or leaves no room becomes an error."""
        prompts, answers = self._prompts.ids_or_errors(batch)
        answers |= self._decode([r for r in batch if r.key in prompts], prompts)
        return [answers[r.key] for r in batch]

    def _decode(
        self, requests: Sequence[Request], prompts: Mapping[str, list[int]]
    ) -> dict[str, Response]:
        if not requests:
            return {}
        if self._model is None:
            self._model = load_model(self.files, self.placement)
        began = time.monotonic()
        sampled = self.sampling.temperature > 0
        seeds = [long_seed(r) for r in requests]
        decoded = decode_within_context(
            self._model,
            self._tokenizer,
            [prompts[r.key] for r in requests],
            self.sampling,
            seeds,
        )
        seconds = time.monotonic() - began  # of the batch: its answers come together
        context = context_length(self._model)
        return {
            r.key: answer_of(
                r.key,
                prompts[r.key],
                answer.ids if answer else None,
                answer is not None and answer.ended,
                self._reader,
                space=self._prompts.space,
                context=context,
                seconds=seconds,
                seed=long_seed(r) if sampled else None,
            )
            for r, answer in zip(requests, decoded, strict=True)
        }
