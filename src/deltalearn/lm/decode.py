"""Decode answers in batches; each request's randomness is its own, whatever stands beside it.

Sampling is by inverse transform: request r draws at step t the t-th number of a counter-based
generator (Philox) keyed by r's seed. A request thus gets the same noise in any batch, in any
order, before or after a crash; only floating-point rounding between batch shapes remains, and
the generate stage keeps its batches fixed to remove that too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from deltalearn.errors import UserError
from deltalearn.lm.load import context_length, end_ids
from deltalearn.records import Sampling
from deltalearn.util.failure import brief
from deltalearn.util.progress import console

PROBE_WIDTH, PROBE_PADDING = 11, 6  # tokens of the longer prompt, and what the shorter lacks
PADDING_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative to the largest logit
PADDING_COARSE = 0.1  # in 16 bits
_TRIED: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()

Stopped = Callable[[int, list[int]], bool]  # of a row's number and what it has written so far


@dataclass(frozen=True)
class Decoded:
    """One decoded answer: ids without the end-of-turn id, and whether an end was reached."""

    ids: tuple[int, ...]
    ended: bool


def pick_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample one id per row by inverse transform.

    Nucleus sampling keeps the smallest set of tokens whose probability reaches top_p (Holtzman et
    al. 2020, arXiv 1904.09751).

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1).
        temperature: Above 0.
        top_p: In (0, 1]; 1 keeps all tokens.

    Returns:
        Ids, (B,) long.
    """
    probabilities = (logits.double() / temperature).softmax(-1)
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(-1)
    if top_p < 1:
        outside = cumulative - probabilities >= top_p
        cumulative = probabilities.masked_fill(outside, 0).cumsum(-1)
    threshold = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, rank).squeeze(-1)


class _KeyedSampler(LogitsProcessor):
    """Leaves only the sampled token possible, so that `generate`'s arg-max becomes a sample."""

    def __init__(self, uniforms: Tensor, prompt_width: int, sampling: Sampling) -> None:
        self.uniforms = uniforms
        self.prompt_width = prompt_width
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        picked = pick_tokens(
            scores, self.uniforms[:, step], self.sampling.temperature, self.sampling.top_p
        )
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(-1, picked.unsqueeze(-1), 0.0)


class _RowStops(StoppingCriteria):
    """Ends rows one by one."""

    def __init__(self, stopped: Stopped, prompt_width: int) -> None:
        self.stopped = stopped
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        written = input_ids[:, self.prompt_width :].tolist()
        ends = [self.stopped(row, ids) for row, ids in enumerate(written)]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)


def request_uniforms(seeds: Sequence[int], steps: int) -> np.ndarray:
    """Draw the uniform numbers of requests by a counter-based generator (Philox).

    Args:
        seeds: One integer below 2**128 per request.
        steps: Numbers of each.

    Returns:
        (len(seeds), steps) float64 in [0, 1); row r depends on seeds[r] alone.
    """
    return np.stack([np.random.Generator(np.random.Philox(key=s)).random(steps) for s in seeds])


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    stopped: Stopped | None = None,
) -> list[Decoded]:
    """Answer some prompts: in one batch, unless company would change the model's answers.

    Args:
        model: In evaluation mode.
        tokenizer: Gives the end-of-turn id.
        prompts: Ids of each prompt.
        sampling: Temperature 0 decodes greedily.
        seeds: One non-negative integer below 2**128 per prompt; needed unless greedy.
        stopped: Asked after each token of each row whether its answer ends there; default: never.

    Returns:
        An answer for each prompt, in order.
    """
    answers: dict[int, Decoded] = {}
    for batch in _batches(model, prompts):
        found = _decode(
            model,
            tokenizer,
            [prompts[i] for i in batch],
            sampling,
            seeds and [seeds[i] for i in batch],
            stopped and _renumbered(stopped, batch),
        )
        answers |= dict(zip(batch, found, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _renumbered(stopped: Stopped, rows: Sequence[int]) -> Stopped:
    """`stopped` for a batch of some rows."""
    return lambda row, ids: stopped(rows[row], ids)


def _batches(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of the prompts that are decoded together: all, if the model lets them."""
    everybody = list(range(len(prompts)))
    company = best_company(model) if len(prompts) > 1 else "any"
    if company == "any":
        return [everybody]
    if company == "none":
        return [[i] for i in everybody]
    lengths = sorted(set(map(len, prompts)))
    return [[i for i in everybody if len(prompts[i]) == length] for length in lengths]


def _decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None,
    stopped: Stopped | None,
) -> list[Decoded]:
    width = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(prompts):
        input_ids[i, width - len(ids) :] = torch.tensor(ids)
        mask[i, width - len(ids) :] = 1
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        if seeds is None:
            raise ValueError("sampling needs one seed per prompt")
        uniforms = torch.from_numpy(request_uniforms(seeds, sampling.max_tokens))
        processors.append(_KeyedSampler(uniforms.to(model.device), width, sampling))
    stops = end_ids(model, tokenizer)
    output = _generate(
        model,
        input_ids,
        mask,
        GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=min(stops),  # behind a row that `stopped` has ended, too
        ),
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([_RowStops(stopped, width)] if stopped else []),
    )
    return [_until_end(row, stops) for row in output[:, width:].tolist()]


def decode_within_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    stopped: Stopped | None = None,
) -> list[Decoded | None]:
    """Like `decode`, but no answer runs past the model's context.

    A prompt that leaves less room than max_tokens is decoded alone, up to the end of the context,
    so that it does not shorten its neighbours' answers.

    Args:
        model: In evaluation mode.
        tokenizer: Gives the end-of-turn id.
        prompts: Ids of each prompt.
        sampling: Temperature 0 decodes greedily.
        seeds: One non-negative integer below 2**128 per prompt; needed unless greedy.
        stopped: As for `decode`.

    Returns:
        An answer for each prompt; None where no token would fit.
    """
    context = context_length(model) or 2**31
    rooms = [min(context - len(prompt), sampling.max_tokens) for prompt in prompts]
    wide = [i for i, room in enumerate(rooms) if room == sampling.max_tokens]
    tight = [[i] for i, room in enumerate(rooms) if 0 < room < sampling.max_tokens]
    answers: list[Decoded | None] = [None] * len(prompts)
    for batch in filter(None, [wide, *tight]):
        decoded = decode(
            model,
            tokenizer,
            [prompts[i] for i in batch],
            replace(sampling, max_tokens=rooms[batch[0]]),
            seeds and [seeds[i] for i in batch],
            stopped and _renumbered(stopped, batch),
        )
        for i, answer in zip(batch, decoded, strict=True):
            answers[i] = answer
    return answers


def _generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    mask: Tensor,
    config: GenerationConfig,
    **options: Any,
) -> Any:
    """transformers' own loop. UserError with what it says of a model that it cannot run."""
    try:
        return model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # kernels that are missing, caches of another shape, ...
        raise UserError(
            f"{model.config.model_type}: transformers {transformers.__version__} does not generate "
            f"with this model ({brief(error)}). Install what the error names, use another version, "
            "or let a server answer (--url)"
        ) from error


@torch.no_grad()
def best_company(model: PreTrainedModel) -> str:
    """Try which prompts may stand beside one without changing a model's answer to it.

    Positions that count padding (learned tables of some models) and states that read it (RWKV)
    change answers. Tried once for each model, on a few random tokens.

    Args:
        model: In evaluation mode.

    Returns:
        "any", "equal" (prompts of the same length) or "none".
    """
    if model not in _TRIED:
        fits = (c for c, padding in (("any", PROBE_PADDING), ("equal", 0)) if _fits(model, padding))
        _TRIED[model] = next(fits, "none")
        if _TRIED[model] != "any":
            apart = "each length" if _TRIED[model] == "equal" else "each prompt"
            kind = model.config.model_type
            console.print(f"{kind}: a batch changes its answers; {apart} is decoded apart")
    return _TRIED[model]


def _fits(model: PreTrainedModel, padding: int) -> bool:
    """True if two tokens after a prompt are the same beside one longer by `padding`."""
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = min(rows, getattr(model.config.get_text_config(), "vocab_size", None) or rows)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, PROBE_WIDTH), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :padding], mask[1, :padding] = 0, 0
    config = GenerationConfig(
        max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True,
        pad_token_id=0,
    )  # fmt: skip
    both = _generate(model, ids, mask, config)
    alone = _generate(model, ids[1:, padding:], mask[1:, padding:], config)
    tolerance = PADDING_TOLERANCE.get(model.dtype, PADDING_COARSE)
    pairs = zip(both.logits, alone.logits, strict=False)  # one may have met its end
    for step, (beside, own) in enumerate(pairs):
        difference = (beside[1] - own[0]).abs().max() / own.abs().max()
        if not difference <= tolerance:
            return False
        if (
            both.sequences[1, PROBE_WIDTH + step]
            != alone.sequences[0, step + PROBE_WIDTH - padding]
        ):
            return True  # a tie: what follows cannot be compared
    return True


def _until_end(ids: list[int], stops: frozenset[int]) -> Decoded:
    for at, token in enumerate(ids):
        if token in stops:
            return Decoded(tuple(ids[:at]), ended=True)
    return Decoded(tuple(ids), ended=False)
