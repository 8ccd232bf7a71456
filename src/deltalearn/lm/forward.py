"""A model's forward that takes a layout: log-probabilities of answer tokens, and nothing else.

`attach` gives it to a model, which keeps its ordinary forward for everything else. `rows` decides
which layout a model can use, `scoring` scores answers by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltalearn.lm.attention import row_mask
from deltalearn.lm.head import Buffers, logit_adjustment, token_logprobs
from deltalearn.lm.layout import BLOCK, Layout, Tree, lay_out, longest
from deltalearn.lm.logprobs import gather_logprobs, head_only_at

# How padded rows are computed, the cheapest first: base model and head by themselves; the model's
# own forward with the head at answer tokens only; its own forward with all logits.
WAYS = ("head", "whole", "logits")


@dataclass(frozen=True)
class RowLayout:
    """The layout and attention of a model's rows, and the reason for them.

    Attributes:
        layout: One of LAYOUTS.
        attention: Back-end of `deltalearn.lm.attention`; None for padded rows.
        reason: Why it was chosen, for people.
    """

    layout: str
    attention: str | None
    reason: str

    def __str__(self) -> str:
        how = f"{self.layout} rows" + (f", {self.attention} attention" if self.attention else "")
        return f"{how} ({self.reason})"


@dataclass
class Proved:
    """Findings of probes about one model, kept as its attribute `_proved`.

    Attributes:
        way: Of WAYS, the first that gives the model's own logits; "" before the first probe.
        ruled_out: Layouts, and why.
        head_buffers: Of the head, used again from forward to forward.
    """

    way: str = ""
    ruled_out: dict[str, str] = field(default_factory=dict)
    head_buffers: Buffers = field(default_factory=Buffers)


PADDED = RowLayout("padded", None, "any causal model")


def attach(model: PreTrainedModel) -> None:
    """Let `model(input_ids=..., layout=..., attention=...)` return (N,) log-probabilities.

    The object gets a subclass of its class with another forward, so that wrappers (DDP, FSDP2,
    autocast, peft) and copies see an ordinary model. Attaching twice changes nothing.
    """
    kind = type(model)
    if hasattr(kind, "_takes_layouts"):
        return

    @wraps(kind.forward)  # generation reads the signature
    def forward(self, *args, layout: Layout | None = None, attention: str | None = None, **kwargs):
        if layout is None:
            return kind.forward(self, *args, **kwargs)
        return _layout_logprobs(self, layout, attention)

    own = {"forward": forward, "_takes_layouts": True, "__module__": kind.__module__}
    model.__class__ = type(kind.__name__, (kind,), own)  # the name goes into saved configs
    model._proved = Proved()


def _layout_logprobs(model: PreTrainedModel, layout: Layout, attention: str | None) -> Tensor:
    if attention is None and model._proved.way in ("whole", "logits"):
        return own_logprobs(model, layout, head_only=model._proved.way == "whole")
    extra: dict = {}
    if attention is not None:
        # A mask of four dimensions is what transformers hands on untouched to every layer.
        rows = row_mask(layout, attention)
        dense = rows.mask if attention == "sdpa" else layout.input_ids.new_ones(1, 1, 1, 1).bool()
        extra = {"attention_mask": dense, "position_ids": layout.position_ids, "rows": rows}
    output = model.base_model(input_ids=layout.input_ids, use_cache=False, **extra)
    hidden = output.last_hidden_state.flatten(0, 1)[layout.predicts]
    adjust = logit_adjustment(model.config)
    head, buffers = model.get_output_embeddings(), model._proved.head_buffers
    return token_logprobs(head, hidden, layout.targets, adjust, buffers)


def own_logprobs(model: PreTrainedModel, layout: Layout, *, head_only: bool) -> Tensor:
    """Compute log-probabilities of padded rows by the model's own forward, whatever it does.

    Args:
        model: Of transformers.
        layout: Padded rows, on the model's device.
        head_only: Apply the head at answer tokens only.

    Returns:
        (N,), float32 or wider, differentiable.
    """
    if not head_only:
        logits = model(input_ids=layout.input_ids, use_cache=False).logits
        return gather_logprobs(logits.flatten(0, 1)[layout.predicts], layout.targets)
    with head_only_at(model, layout.predicts):
        logits = model(input_ids=layout.input_ids, use_cache=False).logits[0]
    return gather_logprobs(logits, layout.targets)


def plain_logprobs(model: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Compute log-probabilities the slow way that every other is held to.

    Each answer with its prompt is a forward of its own, without padding and with all logits.

    Args:
        model: Of transformers, in evaluation mode.
        trees: Prompts with their answers.

    Returns:
        (N,) in the order of a layout's targets.
    """
    found = []
    for tree in trees:
        for answer in tree.answers:
            ids = torch.tensor([[*tree.prompt, *answer]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0]
            first = len(tree.prompt) - 1
            found.append(gather_logprobs(logits[first:-1], ids[0, first + 1 :]))
    return torch.cat(found)


def layout_logprobs(model: nn.Module, layout: Layout, rows: RowLayout) -> Tensor:
    """Compute the log-probability of every answer token of `layout`, (N,).

    Args:
        model: A model that was given to `attach`; may be wrapped.
        layout: The rows, on the model's device.
        rows: The layout and attention that they were made for.

    Returns:
        (N,), float32 or wider, differentiable.
    """
    return model(input_ids=layout.input_ids, layout=layout, attention=rows.attention)


def answer_logprobs(model: nn.Module, layout: Layout, rows: RowLayout) -> Tensor:
    """Sum the log-probabilities of each answer's tokens.

    Args:
        model: A model that was given to `attach`; may be wrapped.
        layout: The rows, on the model's device.
        rows: The layout and attention that they were made for.

    Returns:
        (A,), float32 or wider, differentiable.
    """
    return layout.sum_by_answer(layout_logprobs(model, layout, rows))


def make_layout(trees: Sequence[Tree], rows: RowLayout, device: torch.device | str) -> Layout:
    """Lay out trees on a device.

    Args:
        trees: Prompts with their answers.
        rows: The layout and attention to make them for.
        device: Where the tensors go.

    Returns:
        The tensors of one forward.
    """
    width = max(BLOCK, *map(longest, trees)) if rows.attention == "sdpa" else None
    return lay_out(trees, rows.layout, width=width).to(device)
