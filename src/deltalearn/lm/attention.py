"""Attention over shared and packed rows: one entrance into transformers, three back-ends.

Models of transformers look their attention up by name; under the name `ATTENTION` they get
`layout_attention`, which reads the layout that is passed to the model's forward. Without a layout
it is transformers' own SDPA attention, so that generation and padded rows work as ever. All
back-ends have the same result:

- segments: each tree by itself, no mask and no wasted score. On a CPU an answer's attention to
  the prompt and to itself are two flash-attention calls, merged by their log-sum-exps.
- sdpa: one dense mask a row; for short trees, and on any device.
- flex: FlexAttention with a block mask; for GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from deltalearn.lm.layout import BLOCK, Layout, Segment
from deltalearn.lm.torch_private import flash_attention, flash_attention_backward

ATTENTION = "deltalearn"
BACKENDS = ("segments", "sdpa", "flex")


@dataclass(frozen=True)
class RowMask:
    """A layout's attention, made once a forward and used by every layer.

    `mask` is (R, 1, T, T) bool for sdpa, a BlockMask for flex, None for segments.
    """

    backend: str
    segments: tuple[Segment, ...]
    mask: Any = None


def row_mask(layout: Layout, backend: str) -> RowMask:
    """Prepare `layout`, already on its device, for `backend`."""
    assert layout.document is not None and layout.branch is not None
    if backend == "segments":
        return RowMask(backend, layout.segments)
    if backend == "sdpa":
        return RowMask(backend, layout.segments, _dense_mask(layout.document, layout.branch))
    return RowMask(backend, layout.segments, _block_mask(layout.document, layout.branch))


def _dense_mask(document: Tensor, branch: Tensor) -> Tensor:
    same = document.unsqueeze(2) == document.unsqueeze(1)
    seen = (branch.unsqueeze(1) == 0) | (branch.unsqueeze(2) == branch.unsqueeze(1))
    place = torch.arange(document.shape[1], device=document.device)
    return (same & seen & (place.unsqueeze(1) >= place)).unsqueeze(1)


def _block_mask(document: Tensor, branch: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b, _head, query, key):
        seen = (branch[b, key] == 0) | (branch[b, query] == branch[b, key])
        return (document[b, query] == document[b, key]) & seen & (query >= key)

    rows, width = document.shape
    return create_block_mask(visible, rows, None, width, width, document.device, BLOCK)


def layout_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    rows: RowMask | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it.

    Args:
        module: The attention layer.
        query: (B, H, T, D).
        key: (B, G, T, D), G a divisor of H.
        value: (B, G, T, D).
        attention_mask: Used without `rows` only.
        scaling: Factor of the scores; default D ** -0.5.
        dropout: Used without `rows` only; there is none in rows.
        softcap: Gemma 2's cap of the scores; None for none.
        rows: The layout's attention; None computes transformers' own.
        **kwargs: Passed on to transformers without `rows`.

    Returns:
        (B, T, H, D), and None in place of attention weights.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if rows is None:
        if softcap is not None:
            return _masked_softcap(query, key, value, attention_mask, scale, softcap), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    # Under autocast rotary embeddings leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if rows.backend == "flex":
        output = _flex(query, key, value, rows.mask, scale, softcap)
    elif rows.backend == "sdpa" and softcap is not None:
        return _masked_softcap(query, key, value, rows.mask, scale, softcap), None
    elif rows.backend == "sdpa":
        key, value = _repeat(key, query), _repeat(value, query)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=rows.mask, scale=scale)
    elif query.device.type == "cpu" and softcap is None:
        output = _CpuSegments.apply(query, key, value, rows.segments, scale)
    else:
        output = _segment_by_segment(query, key, value, rows.segments, scale, softcap)
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, layout_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def keep_out_of_graphs() -> None:
    """Let compiled layers call attention as it is: a kernel, or compiled already."""
    AttentionInterface.register(ATTENTION, torch.compiler.disable(layout_attention))


def _repeat(grouped: Tensor, query: Tensor) -> Tensor:
    """Keys or values of grouped heads, once for each query head."""
    times = query.shape[1] // grouped.shape[1]
    return grouped if times == 1 else grouped.repeat_interleave(times, dim=1)


def _masked_softcap(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2), which no fused kernel on a CPU has."""
    scores = query @ _repeat(key, query).transpose(-1, -2) * scale
    scores = cap * torch.tanh(scores / cap)
    if mask is None:
        lengths = scores.shape[-2:]
        ones = torch.ones(lengths, dtype=torch.bool, device=scores.device)
        mask = ones.tril(lengths[1] - lengths[0])
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(query.dtype)
    return (weights @ _repeat(value, query)).transpose(1, 2)


_compiled_flex: Any = None


def _flex(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float, cap: float | None
) -> Tensor:
    global _compiled_flex
    from torch.nn.attention.flex_attention import flex_attention

    if _compiled_flex is None:  # on a CPU its backward exists uncompiled only, for tests
        on_gpu = query.device.type == "cuda"
        _compiled_flex = torch.compile(flex_attention, dynamic=True) if on_gpu else flex_attention

    def capped(score, *_):
        return cap * torch.tanh(score / cap)

    return _compiled_flex(
        query,
        key,
        value,
        score_mod=None if cap is None else capped,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    cap: float | None,
) -> Tensor:
    """Each answer with its prompt as an attention of its own, by ordinary differentiable calls."""
    from torch.nn.attention.bias import causal_lower_right

    key, value = _repeat(key, query), _repeat(value, query)
    output = torch.zeros_like(query)
    for segment in segments:
        row = slice(segment.row, segment.row + 1)
        prompt = slice(segment.start, segment.answers[0])
        for i, (start, end) in enumerate(segment.spans()):
            # The first answer stands directly behind the prompt: one causal attention for both.
            asked = slice(segment.start if i == 0 else start, end)
            q = query[row, :, asked]
            k, v = (
                torch.cat([t[row, :, prompt], t[row, :, start:end]], dim=2) for t in (key, value)
            )
            if cap is not None:
                part = _masked_softcap(q, k, v, None, scale, cap).transpose(1, 2)
            else:
                mask = causal_lower_right(q.shape[2], k.shape[2])
                part = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            output[row, :, asked] = part
    return output


class _CpuSegments(torch.autograd.Function):
    """Attention of every tree in a few flash-attention calls, for all of them one autograd node.

    An answer that does not follow its prompt directly attends to the prompt (no mask) and to
    itself (causal). The parts merge by their log-sum-exps; given the merged output and
    log-sum-exp, flash attention's backward gives each part's exact share of the gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, segments, scale):
        groups = key.shape[1]
        parts = [_by_group(t, groups) for t in (query, key, value)]
        q, k, v = parts
        output = torch.zeros_like(q)
        sums = q.new_zeros(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        for row, prompt, first, others in _calls(segments):
            o, lse = flash_attention(
                q[row, ..., first, :].flatten(0, 1),
                *_pick(k, v, row, first, q),
                is_causal=True,
                scale=scale,
            )
            output[row, ..., first, :] = o.view_as(output[row, ..., first, :])
            sums[row, ..., first] = lse.view_as(sums[row, ..., first])
            for own in others:
                asked = q[row, ..., own, :].flatten(0, 1)
                there, lse_there = flash_attention(asked, *_pick(k, v, row, prompt, q), scale=scale)
                here, lse_here = flash_attention(
                    asked, *_pick(k, v, row, own, q), is_causal=True, scale=scale
                )
                lse = torch.logaddexp(lse_there, lse_here)
                merged = there * (lse_there - lse).exp().unsqueeze(-1).to(there.dtype)
                merged += here * (lse_here - lse).exp().unsqueeze(-1).to(here.dtype)
                output[row, ..., own, :] = merged.view_as(output[row, ..., own, :])
                sums[row, ..., own] = lse.view_as(sums[row, ..., own])
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.segments, ctx.scale = segments, scale
        return output.view(query.shape)

    @staticmethod
    def backward(ctx, grad):
        query, key, value, output, sums = ctx.saved_tensors
        groups = key.shape[1]
        q, k, v, g = (_by_group(t, groups) for t in (query, key, value, grad))
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(q)

        def add(row, asked, seen, causal):
            gq, gk, gv = flash_attention_backward(
                g[row, ..., asked, :].flatten(0, 1),
                q[row, ..., asked, :].flatten(0, 1),
                *_pick(k, v, row, seen, q),
                output[row, ..., asked, :].flatten(0, 1),
                sums[row, ..., asked].flatten(0, 1),
                0.0,
                causal,
                scale=ctx.scale,
            )
            for total, where, part in ((dq, asked, gq), (dk, seen, gk), (dv, seen, gv)):
                place = total[row, ..., where, :]
                place += part.view_as(place)

        for row, prompt, first, others in _calls(ctx.segments):
            add(row, first, first, True)
            for own in others:
                add(row, own, prompt, False)
                add(row, own, own, True)
        return dq.view(query.shape), dk.sum(2), dv.sum(2), None, None


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """(R, H, T, D) as (R, groups, H / groups, T, D)."""
    return heads.unflatten(1, (groups, -1))


def _pick(k: Tensor, v: Tensor, row: slice, span: slice, q: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a span, seen by each query head of their group without a copy."""
    shape = (-1, -1, q.shape[2], -1, -1)
    keys, values = (t[row, ..., span, :].expand(shape).flatten(0, 1) for t in (k, v))
    return keys, values


def _calls(segments: tuple[Segment, ...]):
    """(row, prompt, prompt with first answer, other answers) of every tree, as slices."""
    for s in segments:
        (_, end), *rest = s.spans()
        row = slice(s.row, s.row + 1)
        prompt = slice(s.start, s.answers[0])
        yield row, prompt, slice(s.start, end), [slice(a, b) for a, b in rest]
