"""Which layout and attention a model's rows can have: chosen from its config, then tried on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.attention import ATTENTION
from deltalearn.lm.forward import (
    PADDED,
    WAYS,
    RowLayout,
    attach,
    layout_logprobs,
    make_layout,
    own_logprobs,
    plain_logprobs,
)
from deltalearn.lm.layout import Tree, longest, tree_cost
from deltalearn.lm.transformers_private import (
    attention_name,
    carries_state,
    takes_attention_functions,
)
from deltalearn.util.failure import brief

SHORT_TREE = 96  # mean tokens below which one dense mask beats a call for every tree (docs/log.md)
# Relative; others: PROBE_COARSE. Eager attention takes its softmax in float32 in any precision.
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
PROBE_COARSE = 5e-2
CAUSAL_COARSE = 0.3  # in 16 bits another batch may choose other experts
FLEX_LEAST_WIDTH = 16  # of a head: torch 2.11 compiles no flex attention for narrower ones


def choose_rows(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    layout: str = "auto",
    attention: str = "auto",
    device_type: str | None = None,
) -> RowLayout:
    """Decide the layout and attention of a model, and prove them on the model.

    "auto" takes shared rows where the model can, else padded ones. Whatever is chosen is compared
    with the model's own logits, of each answer by itself, on a few random tokens. A disagreement or
    an error falls back to padded rows. What has once been ruled out stays so for this model: a
    later choice may be tried in a coarser precision.

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
        UserError: If a layout or attention that was asked for by name cannot be used, or if the
            model is not a causal one: not even padded rows give its own log-probabilities.
    """
    attach(model)
    kind = "shared" if layout == "auto" else layout
    proved = model._proved
    truth = _own_logits(model)
    _prove_padded(model, truth)
    obstacle = sharing_obstacle(model, trees) or proved.ruled_out.get(kind, "")
    if proved.way != "head":
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
    backends = _attentions(model, device_type, trees, kind, attention)
    # What is computed without a layout (answers, scores while tuning) goes through it as well.
    found = _fault(model, PADDED, truth)
    if found:  # sinks, say, that an ordinary attention does not have
        found, backends = f"its own attention does more than an ordinary one ({found})", []
    for backend, reason in backends:
        rows = RowLayout(kind, backend, found or reason)
        tried = rows if model.device.type == device_type else replace(rows, attention="sdpa")
        found = _fault(model, tried, truth)
        if not found:
            return rows
    model.set_attn_implementation(before)
    proved.ruled_out[kind] = found
    if layout != "auto":
        raise UserError(f"layout {layout!r} cannot be used: {found}; use padded or auto")
    return RowLayout("padded", None, found)


@dataclass(frozen=True)
class _Truth:
    """Log-probabilities (N,) of the probe's padded rows by the model's own logits; their dtype."""

    logprobs: Tensor
    dtype: torch.dtype

    def difference(self, found: Tensor) -> float:
        """Largest difference, relative to the largest log-probability."""
        truth = self.logprobs
        difference = ((found.double() - truth).abs().max() / truth.abs().max()).item()
        return difference if difference == difference else float("inf")


def require_gradients(model: PreTrainedModel) -> None:
    """Check that the log-probabilities of a model depend on what is to be trained.

    Args:
        model: The bare model of transformers, after `choose_rows`.

    Raises:
        UserError: If they do not: a layer of its own kind (Reformer's) cuts adapters off, say.
    """
    tree = _probe_trees(model)[1]
    with torch.enable_grad():
        found = layout_logprobs(model, make_layout([tree], PADDED, model.device), PADDED)
    if not found.requires_grad:
        raise UserError(
            f"{model.config.model_type}: no gradient reaches what is to be trained; leave "
            "tune.lora out to tune all weights, or use another model"
        )


def _prove_padded(model: PreTrainedModel, truth: _Truth) -> None:
    """Find the cheapest way to compute padded rows that agrees with the model's own logits.

    UserError unless these are, in padded rows, what they are for each answer by itself: a model
    that looks ahead (an encoder) is found out here, whatever its config says.
    """
    proved = model._proved
    if not proved.way:
        with _computing(model):
            difference = truth.difference(plain_logprobs(model, _probe_trees(model)))
        if difference > PROBE_TOLERANCE.get(truth.dtype, CAUSAL_COARSE):
            raise UserError(
                f"{model.config.model_type}: a token's log-probability changes by {difference:.1e} "
                "with what follows it or stands in other rows, so this is no causal language "
                "model, and its answers cannot be scored; use another model"
            )
    for way in WAYS[WAYS.index(proved.way or WAYS[0]) :]:
        proved.way = way
        if not _fault(model, PADDED, truth):
            return


def sharing_obstacle(model: PreTrainedModel, trees: Sequence[Tree]) -> str:
    """Say why a model cannot keep several documents in a row.

    Args:
        model: A model of transformers; a config without weights will do.
        trees: What will be computed; their lengths count.

    Returns:
        The reason; empty if nothing is known against it.
    """
    try:
        return _config_obstacle(model, trees)
    except Exception as error:  # configs of some architectures refuse to be read as others are
        return f"its config does not tell whether documents can share a row ({brief(error)})"


def _config_obstacle(model: PreTrainedModel, trees: Sequence[Tree]) -> str:
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
    try:
        heads = getattr(text, "num_attention_heads", None)
        width = getattr(text, "head_dim", None)
        return width or (text.hidden_size // heads if heads else 0)
    except Exception:  # it differs from layer to layer, or has another name
        return 0


def _fault(model: PreTrainedModel, rows: RowLayout, truth: _Truth) -> str:
    """What keeps `model` from computing in `rows`; empty if it was tried and agrees."""
    name = f"{rows.layout} rows" + (f" with {rows.attention} attention" if rows.attention else "")
    try:
        with _computing(model):
            layout = make_layout(_probe_trees(model), rows, model.device)
            difference = truth.difference(layout_logprobs(model, layout, rows))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler of kernels can fail in any way
        return f"{name} fail on this model ({brief(error)})"
    if difference <= PROBE_TOLERANCE.get(truth.dtype, PROBE_COARSE):
        return ""
    return f"{name} differ from padded ones by {difference:.1e} on this model"


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


@contextmanager
def _computing(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _own_logits(model: PreTrainedModel) -> _Truth:
    """Compute what all else is held to; UserError if the model cannot, by its own forward."""
    try:
        with _computing(model), _precision(model) as seen:
            layout = make_layout(_probe_trees(model), PADDED, model.device)
            found = own_logprobs(model, layout, head_only=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # kernels that are missing, inputs besides ids, ...
        raise UserError(
            f"{model.config.model_type}: this model does not score a text from its ids alone "
            f"({brief(error)}). Install what the error names, or use another model"
        ) from error
    return _Truth(found.double(), seen[-1])


def _probe_trees(model: PreTrainedModel) -> list[Tree]:
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().weight.shape[0]  # more than logits, in some models
    vocabulary = min(rows, getattr(model.config.get_text_config(), "vocab_size", None) or rows)

    def ids(size: int) -> list[int]:
        return torch.randint(vocabulary, (size,), generator=generator).tolist()

    return [
        Tree(ids(5), (ids(3), ids(6))),
        Tree(ids(1), (ids(4), ids(1))),
        Tree(ids(9), (ids(2),)),
    ]
