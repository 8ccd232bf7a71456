"""lm_eval's vLLM model, which answers as generation does: no shipped sampling, read by ids."""

from __future__ import annotations

from typing import Any

from lm_eval.models.vllm_causallms import VLLM
from vllm import SamplingParams
from vllm.platforms import current_platform

from deltalearn.evaluate.harness.wanted import Wanted, wanted
from deltalearn.evaluate.reply import Reply
from deltalearn.lm.control import AnswerReader


class VllmLM(VLLM):
    """Log-likelihoods by lm_eval, texts of ids.

    Attributes:
        end_ids: Every id that ends an answer.
    """

    end_ids: frozenset[int] = frozenset()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The reply to each request; see `Reply`."""
        reader = AnswerReader(self.tokenizer)
        asked = [(self.tok_encode(r.args[0]), wanted(r.args[1], self.max_gen_toks))
                 for r in requests]  # fmt: skip
        prompts = [ids[-max(1, self.max_length - how.sampling.max_tokens) :] for ids, how in asked]
        found = self._model_generate(
            requests=prompts,
            generate=True,
            sampling_params=[self._parameters(how, reader) for _, how in asked],
        )
        replies: list[str] = []
        for output, prompt, (_, how) in zip(found, prompts, asked, strict=True):
            ids = list(output.outputs[0].token_ids)
            while ids and ids[-1] in self.end_ids:
                ids.pop()
            opened = reader.opened(prompt)
            ids = how.room(reader).cut(ids, opened)
            replies.append(Reply.of(reader.read(ids, opened), how.until))
        return replies

    def _parameters(self, how: Wanted, reader: AnswerReader) -> SamplingParams:
        return SamplingParams(
            max_tokens=how.sampling.max_tokens,
            temperature=how.sampling.temperature,
            top_p=how.sampling.top_p,
            # On a CPU vLLM 0.32 ends at a seeded request whose prompt it reads in parts.
            seed=None if current_platform.is_cpu() else how.seed,
            stop_token_ids=sorted(self.end_ids),
            # Within reasoning they end nothing, and vLLM cannot tell.
            stop=None if reader.reasons else list(how.until),
            skip_special_tokens=False,
        )
