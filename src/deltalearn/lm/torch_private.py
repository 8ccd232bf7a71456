"""All that this package uses of what torch keeps private; `tests/lm/test_private.py` tries each.

Tried with torch 2.13.0. Who moves to another version runs that test first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = [
    "FakeTensorMode", "flash_attention", "flash_attention_backward", "softmax_in_place",
    "storage_id", "whole_buffer",
]  # fmt: skip

# Called directly, as autograd's own use of them gives no log-sum-exps to merge parts by.
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def softmax_in_place(logits: Tensor) -> None:
    """Overwrite `logits` (rows, V), on a CPU, with their softmax: no public one takes `out`."""
    torch.ops.aten._softmax.out(logits, -1, False, out=logits)


def whole_buffer(view: Tensor) -> Tensor:
    """The tensor of which `view` is a part, or `view` itself if it is a part of none."""
    whole = view._base
    return view if whole is None else whole


def storage_id(storage: torch.UntypedStorage) -> int:
    """Identity of a storage while it lives, of a fake one too, which has no address."""
    return storage._cdata
