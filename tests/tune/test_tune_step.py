"""Protects one optimiser step: its loss and gradients, whatever the layout and the split.

A slow float64 reference builds full logits one row at a time; a pair weighs the same however a
step is split into micro-batches and ranks.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from deltalearn.errors import UserError
from deltalearn.lm.forward import PADDED, RowLayout, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import load_model, place
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows
from deltalearn.recipe import TuneSpec
from deltalearn.tune.dataset import Examples
from deltalearn.tune.loop import Run
from deltalearn.tune.step import Objective
from deltalearn.tune.train import _sample

CPU = place("cpu", "float32")
TRIPLES = [  # lab ids, lengths all different
    ((2, 32, 5, 6, 7, 3), (7, 6, 5, 4), (7, 6, 4)),
    ((2, 33, 9, 5, 7, 8, 3), (5, 7, 8, 9, 4), (5, 9, 7, 8, 4)),
    ((2, 37, 5, 6, 3), (5, 5, 6, 6, 4), (5, 5, 6, 4)),
    ((2, 40, 6, 7, 8, 9, 10, 3), (6, 7, 8, 9, 10, 10, 9, 8, 7, 6, 4), (6, 7)),
]
REFERENCES = [(-7.5, -6.0), (-9.0, -12.5), (-4.0, -5.0), (-3.0, -8.0)]
METHODS = ["dpo_norm", "dpo", "simpo", "sft"]


def examples(triples=TRIPLES) -> Examples:
    return Examples.of(triples)


@pytest.fixture(scope="module")
def student():
    return locate("package://deltalearn.lab/ladder/m")


def slow_loss(model, spec: TuneSpec) -> torch.Tensor:
    """Float64, one row at a time, full logits, Python loops, losses written out."""
    losses, nll, tokens = [], 0, 0
    for (prompt, *answers), references in zip(TRIPLES, REFERENCES, strict=True):
        ratios, means = [], []
        for answer, reference in zip(answers, references, strict=True):
            logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            start = len(prompt)
            total = sum(logprobs[start + i - 1, token] for i, token in enumerate(answer))
            means.append(total / len(answer))
            length = len(answer) if spec.method == "dpo_norm" else 1
            ratios.append((total - reference) / length)
            if answer is answers[0]:
                nll, tokens = nll - total, tokens + len(answer)
        argument = spec.effective_beta and spec.effective_beta * (ratios[0] - ratios[1])
        if spec.method == "simpo":
            argument = spec.effective_beta * (means[0] - means[1]) - spec.effective_gamma
        if spec.method != "sft":
            losses.append(-torch.log(torch.sigmoid(argument)) - spec.nll_coef * means[0])
    return nll / tokens if spec.method == "sft" else sum(losses) / len(losses)


def one_step(
    student, spec: TuneSpec, rows: RowLayout | None = None, triples=TRIPLES, ranks: int = 1
):
    """(record, gradients) of one step in float64; with `ranks`, their micro-batches one by one."""
    model = load_model(student, CPU).double().train()
    data = examples(triples)
    chosen, rejected = zip(*REFERENCES[: len(triples)], strict=True)
    references = None
    if spec.method not in ("sft", "simpo"):
        references = (torch.tensor(chosen).double(), torch.tensor(rejected).double())
    chosen_rows = choose_rows(model, _sample(data, spec), spec.layout, spec.attention)
    objective = Objective(data, references, spec, rows or chosen_rows, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    gradients = {}
    zero = optimizer.zero_grad
    optimizer.zero_grad = lambda: (
        gradients.update({n: p.grad.clone() for n, p in model.named_parameters()}),
        zero(),
    )
    train = np.arange(len(triples))
    run = Run(
        Accelerator(cpu=True), model, optimizer, objective, train, train[:0], spec, 0, 10,
        checkpoints=None, out=None, title="", track=None,
    )  # fmt: skip
    run._guard = lambda step, record: None  # the made-up references are not the student's
    if ranks > 1:
        plans = {}

        def plan(indices):
            from deltalearn.tune.batching import plan_step

            plans["all"] = plan_step(
                objective.lengths(indices), budget=spec.token_budget, ranks=ranks,
                kind=objective.rows.layout,
            )  # fmt: skip
            return [micro for rank in plans["all"] for micro in rank]

        run._plan = plan
    return run.step(0, stop=False), gradients


def settings(method: str, **changes) -> TuneSpec:
    return TuneSpec(method=method, batch_size=4, max_grad_norm=1e9, lr=1e-9, **changes)


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_step_equals_slow_reference(student, method, layout):
    model = load_model(student, CPU).double()
    spec = settings(method, layout=layout)
    loss = slow_loss(model, spec)
    loss.backward()
    record, gradients = one_step(student, spec)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        # The model's norms are float32 inside.
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-7, rtol=1e-5)


def test_nll_coefficient_adds_the_likelihood_of_chosen(student):
    model = load_model(student, CPU).double()
    spec = settings("dpo_norm", nll_coef=0.3)
    loss = slow_loss(model, spec)
    loss.backward()
    record, gradients = one_step(student, spec)
    assert record["loss"] + 0.3 * record["nll"] == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-7, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize(("budget", "ranks"), [(1, 1), (40, 1), (1000, 2), (30, 3)])
def test_any_split_gives_the_same_step(student, method, layout, budget, ranks):
    """Micro-batches of one pair, of a few, and those of two or three ranks added up."""
    whole, expected = one_step(student, settings(method, layout=layout))
    spec = settings(method, layout=layout, token_budget=budget)
    split, gradients = one_step(student, spec, ranks=ranks)
    for key in whole.keys() - {"tokens"}:
        assert split[key] == pytest.approx(whole[key], rel=1e-5, abs=1e-9), key
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-8, rtol=1e-5)


def test_logged_margin_is_what_the_loss_sees(student):
    """With one pair, loss = -log s(beta x margin) holds between the two logged numbers."""
    spec = TuneSpec(batch_size=1, lr=1e-9)
    record, _ = one_step(student, spec, triples=TRIPLES[:1])
    assert record["loss"] == pytest.approx(math.log1p(math.exp(-5 * record["margin"])), rel=1e-5)
    moved = record["chosen_logratio"] - record["rejected_logratio"]
    assert record["margin"] == pytest.approx(moved, rel=1e-5)
    assert (record["chosen_length"], record["rejected_length"]) == (4, 3)


class Waits(TorchDispatchMode):
    """Counts operations whose result has a shape that only the device knows."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        by_mask = name == "aten::index" and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        unknown = ("nonzero", "masked_select", "_unique2", "is_nonzero", "repeat_interleave")
        told = (kwargs or {}).get("output_size") is not None
        Waits.count += by_mask or (name.removeprefix("aten::") in unknown and not told)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("method", ["dpo_norm", "simpo", "sft"])
def test_the_host_waits_for_the_device_once_a_step(student, monkeypatch, layout, method):
    """Every read of a tensor's value on the host is counted over a step of four forwards."""
    counts = {"reads": 0}
    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def read(self, *args, _original=original, **kwargs):
            counts["reads"] += self.requires_grad or self.is_floating_point()
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)
    original_step = Run.step

    def step(self, *args, **kwargs):
        counts["reads"] = Waits.count = 0
        with Waits():
            return original_step(self, *args, **kwargs)

    monkeypatch.setattr(Run, "step", step)
    one_step(student, settings(method, token_budget=1, layout=layout, attention="sdpa"))
    assert counts["reads"] == 1
    assert Waits.count == 0


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_nothing_that_is_sent_to_a_gpu_holds_the_host_up(student, monkeypatch, layout):
    """A copy from memory that is not pinned waits for all that the GPU has been asked before."""
    sent = []

    class Pinned(torch.Tensor):
        pass

    def to(self, device, non_blocking=False):
        assert isinstance(self, Pinned) and torch.device(device).type == "cuda"
        sent.append(non_blocking)
        return self.as_subclass(torch.Tensor)

    trees = [Tree(range(3), (range(4), range(2)))]
    rows = PADDED if layout == "padded" else RowLayout("shared", "sdpa", "")
    expected = make_layout(trees, rows, "cpu")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.as_subclass(Pinned))
    monkeypatch.setattr(torch.Tensor, "to", to)
    found = make_layout(trees, rows, "cuda")
    assert sent == [True] * (5 if layout == "padded" else 7)
    assert torch.equal(found.input_ids, expected.input_ids)


def test_padded_rows_compute_more(student):
    shared, _ = one_step(student, settings("dpo_norm", layout="shared", attention="segments"))
    packed, _ = one_step(student, settings("dpo_norm", layout="packed", attention="segments"))
    padded, _ = one_step(student, settings("dpo_norm"), rows=PADDED)
    useful = sum(len(p) + len(c) + len(r) for p, c, r in TRIPLES)
    assert shared["tokens"] == useful
    assert packed["tokens"] == useful + sum(len(p) for p, _, _ in TRIPLES)
    assert padded["tokens"] == 8 * max(len(p) + max(len(c), len(r)) for p, c, r in TRIPLES)


def test_unused_settings_are_none_of_the_objective():
    """What the planner is told of a pair depends on the method: sft has no rejected answer."""
    both = Objective(examples(), None, SimpleNamespace(method="dpo"), PADDED, None)
    one = Objective(examples(), None, SimpleNamespace(method="sft"), PADDED, None)
    assert both.lengths([0]) == [(6, (4, 3))]
    assert one.lengths([0]) == [(6, (4,))]


class TestGuard:
    """A step that is no step ends the run, but for float16 looking for its loss scale."""

    @staticmethod
    def guard(norm: float, scaler=None, loss: float = 0.6):
        run = object.__new__(Run)
        run.accelerator = SimpleNamespace(scaler=scaler, mixed_precision="fp16")
        run.settings = settings("dpo_norm")
        run._guard(1, {"loss": loss, "grad_norm": norm})

    @pytest.mark.parametrize("norm", [math.inf, math.nan])
    def test_without_a_scaler_it_ends(self, norm):
        with pytest.raises(UserError, match=r"step 2: loss 0\.6, gradient norm"):
            self.guard(norm)

    def test_an_overflow_halves_the_scale_and_leaves_the_step_out(self):
        """With a fused optimiser, whose step is called all the same."""
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(weight.sum() * math.inf).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert not math.isfinite(norm) and scaler.get_scale() == 2.0
        assert torch.equal(weight.detach(), torch.ones(3))
        self.guard(float(norm), scaler)

    def test_no_scale_is_small_enough(self):
        with pytest.raises(UserError, match=r"lower tune\.lr"):
            self.guard(math.inf, torch.amp.GradScaler("cpu", init_scale=0.5))

    def test_a_loss_that_is_no_number_is_no_matter_of_scale(self):
        with pytest.raises(UserError, match="loss nan"):
            self.guard(1.0, torch.amp.GradScaler("cpu"), loss=math.nan)
