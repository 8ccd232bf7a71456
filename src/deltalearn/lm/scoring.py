"""Log-probabilities of answers under a model: the one path for training, reference and scores.

`attach` gives a model a forward that takes a layout and returns log-probabilities of answer
tokens, keeping its ordinary forward for everything else; which layout and attention a model can
use is chosen from its config and then tried on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.attention import ATTENTION, row_mask
from deltalearn.lm.head import Buffers, logit_adjustment, token_logprobs
from deltalearn.lm.layout import BLOCK, Ids, Layout, Tree, lay_out, longest, tree_batches, tree_cost
from deltalearn.lm.logprobs import gather_logprobs, head_only_at
from deltalearn.lm.transformers_private import (
    attention_name,
    carries_state,
    takes_attention_functions,
)

SHORT_TREE = 96  # mean tokens below which one dense mask beats a call for every tree (docs/log.md)
PROBE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; others: PROBE_COARSE
PROBE_COARSE = 5e-2
FLEX_LEAST_WIDTH = 16  # of a head: torch 2.11 compiles no flex attention for narrower ones
ERROR_CHARS = 200  # of a library's error, in a reason


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
class _Proved:
    """What probes have found out about one model; it hangs on the model."""

    needs_whole_forward: bool = False  # it does more than its base model and head
    ruled_out: dict[str, str] = field(default_factory=dict)  # layouts, and why
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
    model._proved = _Proved()


def _layout_logprobs(model: PreTrainedModel, layout: Layout, attention: str | None) -> Tensor:
    if attention is None and model._proved.needs_whole_forward:
        return _whole_logprobs(model, layout)
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


def _whole_logprobs(model: PreTrainedModel, layout: Layout) -> Tensor:
    """By the model's own forward and logits: for models that do more after their base model."""

    with head_only_at(model, layout.predicts):
        logits = model(input_ids=layout.input_ids, use_cache=False).logits[0]
    return gather_logprobs(logits, layout.targets)


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


def choose_rows(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    layout: str = "auto",
    attention: str = "auto",
    device_type: str | None = None,
) -> RowLayout:
    """Decide the layout and attention of a model, and prove them on the model.

    "auto" takes shared rows where the model can, else padded ones. Whatever is chosen, except
    padded rows, is compared with the model's own logits on a few random tokens. A disagreement
    falls back to padded rows. What has once been ruled out stays so for this model: a later choice
    may be tried in a coarser precision.

    Args:
        model: The bare model of transformers; it gets the forward of `attach`.
        trees: What will be computed; a sample of it will do.
        layout: "auto" or one of LAYOUTS.
        attention: "auto" or one of `deltalearn.lm.attention.BACKENDS`.
        device_type: Where the model will run, if it is not there yet; flex attention is then tried
            as a mask.

    Returns:
        The layout and attention to use.

    Raises:
        UserError: If a layout or attention that was asked for by name cannot be used.
    """
    attach(model)
    kind = "shared" if layout == "auto" else layout
    proved = model._proved
    obstacle = sharing_obstacle(model, trees) or proved.ruled_out.get(kind, "")
    difference, tolerance = _probe(model, PADDED)
    proved.needs_whole_forward |= difference > tolerance
    if proved.needs_whole_forward:
        obstacle = obstacle or "the model does more than its base model and head"
    if layout == "padded" or (layout == "auto" and obstacle):
        if attention != "auto":
            raise UserError(f"attention {attention!r} has no effect on padded rows: {obstacle}")
        return RowLayout("padded", None, obstacle or "asked for")
    if obstacle:
        raise UserError(f"layout {layout!r} cannot be used: {obstacle}; use padded or auto")
    before = attention_name(model)
    model.set_attn_implementation(ATTENTION)
    device_type = device_type or model.device.type
    found = ""
    for backend, reason in _attentions(model, device_type, trees, kind, attention):
        rows = RowLayout(kind, backend, found or reason)
        tried = rows if model.device.type == device_type else replace(rows, attention="sdpa")
        found = _fault(model, tried)
        if not found:
            return rows
    model.set_attn_implementation(before)
    proved.ruled_out[kind] = found
    if layout != "auto":
        raise UserError(f"layout {layout!r} cannot be used: {found}; use padded or auto")
    return RowLayout("padded", None, found)


def sharing_obstacle(model: PreTrainedModel, trees: Sequence[Tree]) -> str:
    """Say why a model cannot keep several documents in a row.

    Args:
        model: A model of transformers; a config without weights will do.
        trees: What will be computed; their lengths count.

    Returns:
        The reason; empty if nothing is known against it.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    if other or carries_state(model):
        return f"{config.model_type} has layers without full attention ({', '.join(other)})"
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) and window and "full_attention" not in kinds:
        kinds.add("sliding_attention")  # every layer, as in Mistral
    if "sliding_attention" in kinds and window and any(longest(t) > window for t in trees):
        return f"its attention window of {window} tokens is shorter than the longest pair"
    if not takes_attention_functions(model):
        return f"{config.model_type} does not take attention functions"
    return ""


def _attentions(
    model: PreTrainedModel, device_type: str, trees: Sequence[Tree], kind: str, asked: str
) -> list[tuple[str, str]]:
    """[(back-end, reason)], the best first. UserError for one without gradients on this device."""
    if asked == "flex" and device_type != "cuda":
        raise UserError(
            f"attention flex has no gradients on {device_type}, only on cuda; use auto, segments "
            "or sdpa"
        )
    if asked != "auto":
        return [(asked, "asked for")]
    if device_type == "cuda":
        wide = head_width(model.config) >= FLEX_LEAST_WIDTH
        return [("flex", "block masks on a GPU")] * wide + [("sdpa", "a dense mask")]
    if device_type != "cpu":
        return [("sdpa", "a dense mask")]
    costs = [tree_cost(len(t.prompt), [len(a) for a in t.answers], kind) for t in trees]
    documents = len(trees) if kind == "shared" else sum(len(t.answers) for t in trees)
    if sum(costs) < SHORT_TREE * documents:
        return [("sdpa", "short texts on a CPU")]
    return [("segments", "long texts on a CPU")]


def head_width(config: PretrainedConfig) -> int:
    """Read the width of an attention head off a config; 0 if it does not say."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    width = getattr(text, "head_dim", None)
    return width or (text.hidden_size // heads if heads else 0)


def _fault(model: PreTrainedModel, rows: RowLayout) -> str:
    """What keeps `model` from computing in `rows`; empty if it was tried and agrees."""
    try:
        difference, tolerance = _probe(model, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler of kernels can fail in any way
        told = " ".join(str(error).split())[:ERROR_CHARS]
        return f"{rows.layout} rows with {rows.attention} attention fail on this model ({told})"
    if difference <= tolerance:
        return ""
    return f"{rows.layout} rows differ from padded ones by {difference:.1e} on this model"


@contextmanager
def _precision(model: PreTrainedModel) -> Iterator[list[torch.dtype]]:
    """In what `model` computes its logits within the block, last at the end of the list.

    It is seen at the head, not read off the weights: under autocast, and where sharded weights
    are gathered in 16 bits, these are float32 all the same.
    """
    seen = [next(model.parameters()).dtype]
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _args, logits: seen.append(logits.dtype))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def _probe(model: PreTrainedModel, rows: RowLayout) -> tuple[float, float]:
    """(largest difference to the model's own logits, what rounding may make of it).

    Both are relative to the largest log-probability.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def ids(size: int) -> list[int]:
        return torch.randint(vocabulary, (size,), generator=generator).tolist()

    trees = [
        Tree(ids(5), (ids(3), ids(6))),
        Tree(ids(1), (ids(4), ids(1))),
        Tree(ids(9), (ids(2),)),
    ]
    was_training = model.training
    model.eval()
    try:
        with _precision(model) as seen:
            truth = _whole_logprobs(model, make_layout(trees, PADDED, model.device)).double()
        ours = layout_logprobs(model, make_layout(trees, rows, model.device), rows).double()
    finally:
        model.train(was_training)
    difference = ((ours - truth).abs().max() / truth.abs().max()).item()
    difference = difference if difference == difference else float("inf")
    return difference, PROBE_TOLERANCE.get(seen[-1], PROBE_COARSE)


@torch.no_grad()
def score_batch(
    model: nn.Module, trees: Sequence[Tree], rows: RowLayout, device: torch.device | str
) -> list[list[float]]:
    """Score the answers of some trees by one forward, without gradients.

    Args:
        model: A model that was given to `attach`; may be wrapped.
        trees: Prompts with their answers.
        rows: The layout and attention to use.
        device: The model's device.

    Returns:
        For each tree, the summed log-probability of each answer.
    """
    sums = iter(answer_logprobs(model, make_layout(trees, rows, device), rows).tolist())
    return [[next(sums) for _ in tree.answers] for tree in trees]


def score_answers(
    model: PreTrainedModel, answers: Sequence[tuple[Ids, Ids]], token_budget: int = 16384
) -> Iterator[tuple[int, float]]:
    """Score answers, longest first, each prompt once.

    Args:
        model: The bare model of transformers.
        answers: (prompt ids, answer ids) of each.
        token_budget: Most tokens of one forward.

    Yields:
        (index, summed log-probability) for every answer.
    """
    places = group_by_prompt(answers)
    trees = [Tree(answers[at[0]][0], tuple(answers[i][1] for i in at)) for at in places]
    if not trees:
        return
    rows = choose_rows(model, trees)
    for batch in tree_batches(trees, rows.layout, token_budget):
        scored = score_batch(model, [trees[i] for i in batch], rows, model.device)
        for tree, sums in zip(batch, scored, strict=True):
            yield from zip(places[tree], sums, strict=True)


def group_by_prompt(answers: Sequence[tuple[Ids, Ids]]) -> list[list[int]]:
    """Indices of the answers of each distinct prompt, in the order of first occurrence."""
    groups: dict[bytes, list[int]] = {}
    for i, (prompt, _) in enumerate(answers):
        groups.setdefault(np.asarray(prompt, np.int64).tobytes(), []).append(i)
    return list(groups.values())
