"""Log-probabilities of given tokens from hidden states, without keeping what is not needed.

Only positions that predict an answer token come here. Their logits are made in chunks; a plain
linear head has a hand-written backward that needs one (N, V) buffer, or none if that would be too
large: then each chunk is computed again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deltalearn.lm.logprobs import gather_logprobs

CHUNK_BYTES = 64 << 20  # of logits at a time on a CPU; 16 MB made a step 16% slower
CHUNK_BYTES_GPU = 256 << 20
KEEP_BYTES = 512 << 20  # of log-probabilities kept for the backward; more is computed again

Adjust = Callable[[Tensor], Tensor]


def logit_adjustment(config) -> Adjust | None:
    """What a model does to its logits after the head (soft-cap, scale), None if nothing.

    Gemma: cap x tanh(logits / cap). Cohere: x logit_scale. Granite: / logits_scaling.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    if cap:
        return lambda logits: cap * torch.tanh(logits / cap)
    if scale:
        return lambda logits: logits * scale
    if divisor:
        return lambda logits: logits / divisor
    return None


def token_logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, adjust: Adjust | None = None
) -> Tensor:
    """Log-probability of each target, (N,), float32 or wider, differentiable.

    head: the model's output embeddings. hidden: (N, H), the head's input. targets: (N,) long.
    """
    if type(head) is nn.Linear and head.bias is None and adjust is None:
        return _LinearLogprobs.apply(hidden, head.weight, targets)
    return _by_autograd(head, hidden, targets, adjust)


def _by_autograd(head: nn.Module, hidden: Tensor, targets: Tensor, adjust: Adjust | None) -> Tensor:
    """Any head: its chunks are computed again in the backward, unless all of them fit."""

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part)
        return gather_logprobs(logits if adjust is None else adjust(logits), wanted)

    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]
    if not torch.is_grad_enabled() or _fits(len(targets), vocabulary):
        run = chunk
    else:

        def run(*args):
            return checkpoint(chunk, *args, use_reentrant=False)

    size = _chunk_rows(vocabulary, hidden)
    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([run(*piece) for piece in pieces])


def _fits(rows: int, vocabulary: int) -> bool:
    return rows * vocabulary * 4 <= KEEP_BYTES


def _chunk_rows(vocabulary: int, hidden: Tensor) -> int:
    size = CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES_GPU
    return max(64, size // (4 * vocabulary))


class _LinearLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[targets], with d/dlogits = onehot - softmax in place.

    Gradient products are scaled by the incoming gradient on the (N, H) side, so that the (N, V)
    side is only exponentiated.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        kind = hidden.device.type
        autocast = torch.is_autocast_enabled(kind)
        compute = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
        with torch.autocast(kind, enabled=False):
            low_hidden, low_weight = hidden.to(compute), weight.to(compute)
            size = _chunk_rows(len(weight), hidden)
            keep = any(ctx.needs_input_grad) and _fits(len(targets), len(weight))
            kept, result = [], []
            for part, wanted in zip(low_hidden.split(size), targets.split(size), strict=True):
                logprobs = _log_softmax(part, low_weight)
                result.append(logprobs.gather(-1, wanted.unsqueeze(-1)).squeeze(-1))
                if keep:
                    kept.append(logprobs)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.kept, ctx.compute, ctx.size = kept, compute, size
        return torch.cat(result)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets = ctx.saved_tensors
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        low_weight = weight.to(ctx.compute)
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        ctx.kept.reverse()
        for start in range(0, len(targets), ctx.size):
            part = slice(start, start + ctx.size)
            low = hidden[part].to(ctx.compute)
            logprobs = ctx.kept.pop() if ctx.kept else _log_softmax(low, low_weight)
            probabilities = logprobs.exp_().to(ctx.compute)
            share = grad[part].unsqueeze(-1)
            wanted = targets[part]
            if needs_hidden:
                pull = low_weight[wanted].to(wide) - (probabilities @ low_weight).to(wide)
                grad_hidden[part] = (share * pull).to(hidden.dtype)
            if needs_weight:
                scaled = share * low.to(wide)
                _subtract_product(grad_weight, probabilities, scaled.to(ctx.compute))
                grad_weight.index_add_(0, wanted, scaled)
        weight_gradient = grad_weight.to(weight.dtype) if needs_weight else None
        return grad_hidden, weight_gradient, None


def _log_softmax(hidden: Tensor, weight: Tensor) -> Tensor:
    """(rows, V) log-probabilities in float32 or wider."""
    logits = hidden @ weight.T
    wide = torch.promote_types(logits.dtype, torch.float32)
    if logits.device.type == "cpu" and logits.dtype == wide:  # row by row, so in place is safe
        return torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)
    return logits.log_softmax(-1, dtype=wide)


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total -= left.T @ right, accumulated in the dtype of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, alpha=-1)
    else:
        total -= (left.T @ right).to(total.dtype)
