"""Protects the mathematics of tuning: losses, schedule, batches and their gradients.

Hand-worked values, a slow float64 reference that builds full logits, and the rule that a pair
weighs the same however a step is split into micro-batches.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.lm.load import load_model, place
from deltalearn.lm.locate import locate
from deltalearn.lm.logprobs import collate
from deltalearn.recipe import TuneSpec
from deltalearn.tune.examples import Example
from deltalearn.tune.loop import _accelerator, _Run
from deltalearn.tune.losses import LOSS_AT_START, dpo, dpo_norm
from deltalearn.tune.schedule import batch_at, learning_rate, total_steps

CPU = place("cpu", "float32")
EXAMPLES = [  # lab ids, lengths all different
    Example((2, 32, 5, 6, 7, 3), (7, 6, 5, 4), (7, 6, 4)),
    Example((2, 33, 9, 5, 7, 8, 3), (5, 7, 8, 9, 4), (5, 9, 7, 8, 4)),
    Example((2, 37, 5, 6, 3), (5, 5, 6, 6, 4), (5, 5, 6, 4)),
    Example((2, 40, 6, 7, 8, 9, 10, 3), (6, 7, 8, 9, 10, 10, 9, 8, 7, 6, 4), (6, 7)),
]


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


class TestLosses:
    """Pair: policy sums -6 and -10, reference sums -8 and -9, lengths 4 and 5."""

    arguments = (one(-6), one(-10), one(-8), one(-9), torch.tensor([4]), torch.tensor([5]))

    def test_dpo_norm(self):
        """chosen (-6+8)/4 = .5, rejected (-10+9)/5 = -.2, margin .7; -log s(3.5) = .029750."""
        losses, margins = dpo_norm(*self.arguments, beta=5.0)
        assert margins.item() == pytest.approx(0.7)
        assert losses.item() == pytest.approx(math.log(1 + math.exp(-3.5)))

    def test_dpo(self):
        """margin (-6+8) - (-10+9) = 3; -log s(.1 x 3) = .554355; lengths play no part."""
        losses, margins = dpo(*self.arguments, beta=0.1)
        assert margins.item() == pytest.approx(3.0)
        assert losses.item() == pytest.approx(math.log(1 + math.exp(-0.3)))

    @pytest.mark.parametrize("loss", [dpo, dpo_norm])
    def test_policy_equal_to_reference_gives_ln_2(self, loss):
        a, b = one(-3), one(-7)
        losses, margins = loss(a, b, a, b, torch.tensor([2]), torch.tensor([9]), beta=5.0)
        assert losses.item() == pytest.approx(LOSS_AT_START) == pytest.approx(0.693147, abs=1e-6)
        assert margins.item() == 0

    def test_gradient_of_dpo_norm(self):
        """d loss / d policy_chosen = -beta (1 - s(beta margin)) / length = -5 (1 - s(3.5)) / 4."""
        chosen = one(-6).requires_grad_()
        losses, _ = dpo_norm(chosen, *self.arguments[1:], beta=5.0)
        losses.sum().backward()
        assert chosen.grad.item() == pytest.approx(-5 / 4 / (1 + math.exp(3.5)))


class TestSchedule:
    @pytest.mark.parametrize(
        ("pairs", "steps"), [(150_000, 4687), (100_000, 3125), (50_000, 1562), (16_384, 512)]
    )
    def test_step_counts_of_the_paper(self, pairs, steps):
        assert total_steps(pairs, 32, None, 1.0) == total_steps(pairs, 32, None, None) == steps

    def test_less_than_a_batch_is_no_step(self):
        assert total_steps(31, 32, 100, None) == 0

    def test_steps_may_exceed_an_epoch(self):
        assert total_steps(40, 32, 7, None) == 7

    @pytest.mark.parametrize(("total", "warmup"), [(4687, 141), (3125, 94), (1562, 47), (512, 16)])
    def test_warmup_of_the_paper(self, total, warmup):
        """ceil(.03 x steps) steps rise linearly; the peak is reached at the last of them."""
        rates = [learning_rate(s, total, 1.0, 0.03, 0.1) for s in range(total)]
        assert rates[warmup - 1] == pytest.approx(1.0)
        assert rates[0] == pytest.approx(1 / warmup)
        assert max(rates) == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.1, abs=1e-3)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)

    def test_half_way_down(self):
        """No warm-up, 100 steps: at step 50 the cosine is 0, so the rate is .1 + .9 / 2 = .55."""
        assert learning_rate(50, 100, 2.0, 0.0, 0.1) == pytest.approx(2.0 * 0.55)

    @given(
        pairs=st.integers(1, 60), batch=st.integers(1, 20), epoch=st.integers(0, 3),
        seed=st.integers(0, 5),
    )  # fmt: skip
    def test_an_epoch_sees_each_pair_at_most_once(self, pairs, batch, epoch, seed):
        per_epoch = pairs // batch
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = Counter(i for s in steps for i in batch_at(s, pairs, batch, seed))
        assert sum(seen.values()) == per_epoch * batch
        assert set(seen.values()) <= {1}
        assert all(0 <= i < pairs for i in seen)

    def test_order_depends_on_seed_and_epoch(self):
        first = batch_at(0, 100, 50, seed=0)
        assert first == batch_at(0, 100, 50, seed=0)
        assert first != batch_at(0, 100, 50, seed=1)
        assert first != batch_at(2, 100, 50, seed=0)


def slow_loss(model, references, method: str, beta: float) -> torch.Tensor:
    """Float64, one row at a time, full logits, Python loops."""
    losses, nll, tokens = [], 0, 0
    for example, reference in zip(EXAMPLES, references, strict=True):
        ratios = []
        for answer, ref in zip((example.chosen, example.rejected), reference, strict=True):
            ids = torch.tensor([[*example.prompt, *answer]])
            logprobs = model(ids).logits[0].log_softmax(-1)
            start = len(example.prompt)
            total = sum(logprobs[start + i - 1, token] for i, token in enumerate(answer))
            ratios.append((total - ref) / (len(answer) if method == "dpo_norm" else 1))
            if answer is example.chosen:
                nll, tokens = nll - total, tokens + len(answer)
        losses.append(-torch.log(torch.sigmoid(beta * (ratios[0] - ratios[1]))))
    return nll / tokens if method == "sft" else sum(losses) / len(losses)


@pytest.fixture(scope="module")
def student():
    return locate("package://deltalearn.lab/ladder/m")


REFERENCES = [(-7.5, -6.0), (-9.0, -12.5), (-4.0, -5.0), (-3.0, -8.0)]


def our_gradients(student, method: str, micro: int | None, dtype=torch.float64):
    spec = TuneSpec(method=method, batch_size=4, micro_batch_size=micro, max_grad_norm=1e9, lr=1e-9)
    model = load_model(student, CPU).to(dtype).train()
    chosen, rejected = zip(*REFERENCES, strict=True)
    references = None
    if method != "sft":
        references = (torch.tensor(chosen, dtype=dtype), torch.tensor(rejected, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    gradients = {}
    zero = optimizer.zero_grad
    optimizer.zero_grad = lambda: (
        gradients.update({n: p.grad.clone() for n, p in model.named_parameters()}),
        zero(),
    )
    run = _Run(_accelerator(CPU), model, optimizer, EXAMPLES, references, spec, 0, 10)
    run.guard = lambda step, record: None  # the made-up references are not the student's
    record = run.step(0)
    return record, gradients


@pytest.mark.parametrize("method", ["dpo_norm", "dpo", "sft"])
def test_step_equals_slow_reference(student, method):
    model = load_model(student, CPU).double()
    beta = TuneSpec(method=method).effective_beta or 0.0
    loss = slow_loss(model, REFERENCES, method, beta)
    loss.backward()
    record, gradients = our_gradients(student, method, None)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("method", ["dpo_norm", "dpo", "sft"])
@pytest.mark.parametrize("micro", [1, 2])
def test_any_split_gives_the_same_step(student, method, micro):
    whole, expected = our_gradients(student, method, None)
    split, gradients = our_gradients(student, method, micro)
    for key in whole.keys() - {"tokens"}:
        assert split[key] == pytest.approx(whole[key], rel=1e-6), key
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=1e-9)


def test_logged_margin_is_what_the_loss_sees(student):
    """With one pair, loss = -log s(beta x margin) must hold between the two logged numbers."""
    spec = TuneSpec(batch_size=1, lr=1e-9)
    model = load_model(student, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    references = (torch.tensor([-7.5]), torch.tensor([-6.0]))
    run = _Run(_accelerator(CPU), model, optimizer, EXAMPLES[:1], references, spec, 0, 10)
    run.guard = lambda step, record: None
    record = run.step(0)
    assert record["loss"] == pytest.approx(math.log1p(math.exp(-5 * record["margin"])), rel=1e-5)
    moved = record["chosen_logratio"] - record["rejected_logratio"]
    assert record["margin"] == pytest.approx(moved, rel=1e-5)
    assert (record["chosen_length"], record["rejected_length"]) == (4, 3)


def test_collate_marks_exactly_the_predicting_positions():
    """Prompt of 3, answer of 2: positions 2 and 3 predict; the last answer token predicts none."""
    batch = collate([((1, 2, 3), (4, 5)), ((1,), (6, 7, 8))])
    assert batch.predicts.tolist() == [
        [False, False, True, True, False],
        [True, True, True, False, False],
    ]
    assert batch.targets.tolist() == [4, 5, 6, 7, 8]
    assert batch.lengths.tolist() == [2, 3]
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 6, 7, 8, 0]]
