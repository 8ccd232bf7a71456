"""Log-probabilities of given tokens from hidden states, without keeping what is not needed.

Only positions that predict an answer token come here. Their logits are made in chunks; a plain
linear head has a hand-written backward that keeps the probabilities of as many positions as
KEEP_BYTES hold and computes those of the others again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deltalearn.lm.logprobs import gather_logprobs
from deltalearn.lm.torch_private import softmax_in_place, whole_buffer

CHUNK_BYTES = 64 << 20  # of logits at a time on a CPU; 16 MB made a step 16% slower
CHUNK_BYTES_GPU = 256 << 20
KEEP_BYTES = 1 << 30  # of probabilities kept for the backward; more are computed again

Adjust = Callable[[Tensor], Tensor]


def logit_adjustment(config) -> Adjust | None:
    """Find the function that a model applies to its logits after the head.

    Args:
        config: The model's config. Gemma caps: cap x tanh(logits / cap). Cohere multiplies by
            logit_scale. Granite divides by logits_scaling.

    Returns:
        The function, or None if there is none.
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


class Buffers:
    """Large buffers of a model's head, used again from forward to forward.

    On a CPU a fresh buffer costs a page fault every 4 KB, a quarter of the time of the product that
    fills it; on other devices torch's own allocator does this. A buffer is away from `take` to
    `give`; one that is never given back is freed like any tensor.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[str, torch.dtype], Tensor] = {}

    def __deepcopy__(self, _memo: dict) -> Buffers:
        return Buffers()  # a copied model has its own

    def take(self, use: str, rows: int, columns: int, dtype: torch.dtype, like: Tensor) -> Tensor:
        """A (rows, columns) tensor with anything in it, on the device of `like`."""
        flat = self._free.pop((use, dtype), None)
        if flat is None or flat.numel() < rows * columns:
            flat = torch.empty(rows * columns, dtype=dtype, device=like.device)
        return flat[: rows * columns].view(rows, columns)

    def give(self, use: str, buffer: Tensor) -> None:
        """Let a tensor of `take` be used again."""
        if buffer.device.type == "cpu":
            self._free[use, buffer.dtype] = whole_buffer(buffer)


def token_logprobs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    adjust: Adjust | None = None,
    buffers: Buffers | None = None,
) -> Tensor:
    """Compute the log-probability of each target from hidden states, in chunks.

    Args:
        head: The model's output embeddings.
        hidden: (N, H), the head's input.
        targets: (N,) long.
        adjust: Function of the logits, from `logit_adjustment`.
        buffers: The caller's, kept from one call to the next.

    Returns:
        (N,), float32 or wider, differentiable.
    """
    if type(head) is nn.Linear and head.bias is None and adjust is None:
        weight = head.weight
        if not torch.is_grad_enabled():  # which the function cannot tell: its weight may be trained
            hidden, weight = hidden.detach(), weight.detach()
        return _LinearLogprobs.apply(hidden, weight, targets, buffers or Buffers())
    return _by_autograd(head, hidden, targets, adjust)


def _by_autograd(head: nn.Module, hidden: Tensor, targets: Tensor, adjust: Adjust | None) -> Tensor:
    """Any head: its chunks are computed again in the backward, unless all of them fit."""

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part)
        return gather_logprobs(logits if adjust is None else adjust(logits), wanted)

    vocabulary = getattr(head, "out_features", None) or head.get_parameter("weight").shape[0]
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
    """log softmax(hidden @ weight.T)[targets], with d/dlogits = onehot - softmax.

    Gradient products are scaled by the incoming gradient on the (N, H) side, so that the (N, V)
    side, the probabilities, goes into them as it is.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, buffers):
        kind = hidden.device.type
        autocast = torch.is_autocast_enabled(kind)
        compute = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
        size = _chunk_rows(len(weight), hidden)
        learns = any(ctx.needs_input_grad)
        kept = _rows_kept(len(targets), len(weight), compute, size) if learns else 0
        with torch.autocast(kind, enabled=False):
            low_hidden, low_weight = hidden.to(compute), weight.to(compute)
            probabilities = buffers.take("kept", kept, len(weight), compute, hidden)
            softmax = _ChunkedSoftmax(low_weight, size, buffers)
            result = []
            for part in _chunks(0, len(targets), size):
                into = probabilities[part] if part.start < kept else None
                _, logprobs = softmax(low_hidden[part], targets[part], into)
                result.append(logprobs)
            softmax.close()
        ctx.save_for_backward(hidden, weight, targets)
        ctx.compute, ctx.size, ctx.buffers = compute, size, buffers
        ctx.kept, ctx.probabilities = kept, probabilities
        return torch.cat(result)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        low_weight = weight.to(ctx.compute)
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        softmax = _ChunkedSoftmax(low_weight, ctx.size, ctx.buffers)
        kept = [slice(0, ctx.kept)] if ctx.kept else []
        for part in kept + _chunks(ctx.kept, len(targets), ctx.size):
            low, wanted = hidden[part].to(ctx.compute), targets[part]
            probabilities = ctx.probabilities if part.stop <= ctx.kept else softmax(low, wanted)[0]
            share = grad[part].unsqueeze(-1)
            if needs_hidden:
                direction = low_weight[wanted].to(wide) - (probabilities @ low_weight).to(wide)
                grad_hidden[part] = (share * direction).to(hidden.dtype)
            if needs_weight:
                scaled = share * low.to(wide)
                _subtract_product(grad_weight, probabilities, scaled.to(ctx.compute))
                grad_weight.index_add_(0, wanted, scaled)
        softmax.close()
        if ctx.kept:  # a second backward through the same graph computes all of them again
            ctx.buffers.give("kept", ctx.probabilities)
            ctx.kept = 0
        weight_gradient = grad_weight.to(weight.dtype) if needs_weight else None
        return grad_hidden, weight_gradient, None, None


def _rows_kept(rows: int, vocabulary: int, dtype: torch.dtype, size: int) -> int:
    """How many rows' probabilities fit into KEEP_BYTES: all, or whole chunks of `size`."""
    room = KEEP_BYTES // (dtype.itemsize * vocabulary)
    return rows if rows <= room else room // size * size


def _chunks(start: int, end: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, end)) for i in range(start, end, size)]


class _ChunkedSoftmax:
    """softmax(hidden @ weight.T) of a chunk of rows at a time, in buffers that are used again."""

    def __init__(self, weight: Tensor, size: int, buffers: Buffers) -> None:
        self._weight = weight
        self._shape = (size, len(weight))
        self._buffers = buffers
        self._taken: dict[torch.dtype, Tensor] = {}

    def __call__(
        self, hidden: Tensor, targets: Tensor, into: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (rows, V) in the dtype of `hidden`, and logarithms of those of `targets`.

        The former are in `into`, or valid until the next call. The latter, (rows,), are computed in
        float32 or wider.
        """
        low = self._space(len(hidden), hidden.dtype) if into is None else into
        torch.mm(hidden, self._weight.T, out=low)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logits = low if low.dtype == wide else self._space(len(hidden), wide).copy_(low)
        # log p_t = x_t - max x + log max p: exact however small p_t is, and p is all that is kept.
        above = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.amax(-1)
        if logits.device.type == "cpu":  # row by row, so in place is safe
            softmax_in_place(logits)
        else:
            logits.copy_(logits.softmax(-1))
        logprobs = above + logits.amax(-1).log()
        return (low if low is logits else low.copy_(logits)), logprobs

    def close(self) -> None:
        """Give the buffers back."""
        for buffer in self._taken.values():
            self._buffers.give("chunk", buffer)

    def _space(self, rows: int, dtype: torch.dtype) -> Tensor:
        if dtype not in self._taken:
            self._taken[dtype] = self._buffers.take("chunk", *self._shape, dtype, self._weight)
        return self._taken[dtype][:rows]


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total -= left.T @ right, accumulated in the dtype of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right, alpha=-1)
    else:
        total -= (left.T @ right).to(total.dtype)
