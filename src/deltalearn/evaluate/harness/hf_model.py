"""lm_eval's transformers model, which answers as generation does: one way to load and to decode."""

from __future__ import annotations

from dataclasses import astuple
from itertools import groupby
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.wanted import Wanted, wanted
from deltalearn.evaluate.reply import Reply
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.decode import decode

SLACK = 8  # tokens that a stop string may be spread over beyond one for each character


class TransformersLM(HFLM):
    """Log-likelihoods by lm_eval, texts by `deltalearn.lm.decode`.

    lm_eval's own texts end at one id, at stop strings within the reasoning too, and lose their
    control tokens.
    """

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The reply to each request; see `Reply`."""
        asked = [self._asked(*request.args) for request in requests]
        replies: dict[int, Reply] = {}

        def how(i: int) -> tuple[Any, ...]:
            how = asked[i][1]
            return astuple(how.sampling), how.reasoning, how.until

        order = sorted(range(len(asked)), key=lambda i: (how(i), -len(asked[i][0]), i))
        for _, alike in groupby(order, how):
            places = list(alike)
            for at in range(0, len(places), self.batch_size):
                batch = places[at : at + self.batch_size]
                found = self._replies([asked[i] for i in batch])
                replies.update(zip(batch, found, strict=True))
        return [replies[i] for i in range(len(asked))]

    def _asked(self, context: str, options: dict[str, Any]) -> tuple[list[int], Wanted]:
        """Ids of a prompt, cut on the left where the limit needs it, and what is wanted."""
        how = wanted(options, self.max_gen_toks)
        room = self.max_length - how.sampling.max_tokens
        if room < 1:
            raise UserError(
                f"the limit of {how.sampling.max_tokens} tokens leaves no room for a prompt in a "
                f"context of {self.max_length}"
            )
        return self.tok_encode(context)[-room:], how

    def _replies(self, batch: list[tuple[list[int], Wanted]]) -> list[Reply]:
        prompts = [ids for ids, _ in batch]
        how = batch[0][1]
        reader = AnswerReader(self.tokenizer)
        opened = [reader.opened(ids) for ids in prompts]
        tail = max(map(len, how.until), default=0) + SLACK
        room = how.room(reader)

        def stopped(row: int, ids: list[int]) -> bool:
            if room.is_full(ids, opened[row]):
                return True
            end = self.tokenizer.decode(ids[-tail:])
            if not any(text in end for text in how.until):
                return False
            answer = reader.read(ids, opened[row]).answer  # not in the reasoning
            return any(text in answer for text in how.until)

        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            found = decode(
                self.model,
                self.tokenizer,
                prompts,
                how.sampling,
                [wish.seed or 0 for _, wish in batch],
                stopped if how.until or room.reasoning else None,
            )
        return [
            Reply.of(reader.read(room.cut(answer.ids, mark), mark), how.until)
            for answer, mark in zip(found, opened, strict=True)
        ]
