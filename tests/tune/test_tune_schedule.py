"""Protects how long a run is, its order of pairs and its learning rates.

The paper's step counts, and transformers' schedulers of the same name.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.recipe import TuneSpec
from deltalearn.tune.schedule import SCHEDULES, batch_at, learning_rate, total_steps

PAPER = [  # PAPER.md 2.1, batches of 32: pairs, steps, warm-up steps
    (150_000, 4687, 141),
    (100_000, 3125, 94),
    (50_000, 1562, 47),
    (16_384, 512, 16),
]


class TestLength:
    @pytest.mark.parametrize(("pairs", "steps", "warmup"), PAPER)
    def test_step_counts_of_the_paper(self, pairs, steps, warmup):
        assert total_steps(pairs, 32, None, 1.0) == total_steps(pairs, 32, None, None) == steps

    def test_part_of_an_epoch_is_rounded_up(self):
        """100 pairs are 3 whole batches of 32; half of an epoch is 1.5 of them."""
        assert total_steps(100, 32, None, 0.5) == 2
        assert total_steps(100, 32, None, 2.0) == 6

    def test_less_than_a_batch_is_no_step(self):
        assert total_steps(31, 32, 100, None) == 0
        assert total_steps(32, 32, 100, None) == 100

    def test_steps_may_exceed_an_epoch(self):
        assert total_steps(40, 32, 7, None) == 7


class TestOrder:
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

    def test_the_pair_left_out_differs_between_epochs(self):
        """Of 5 pairs in batches of 4 one is left out; ten epochs leave out more than one pair."""
        left_out = {(set(range(5)) - set(batch_at(e, 5, 4, seed=0))).pop() for e in range(10)}
        assert len(left_out) > 1

    def test_order_depends_on_seed_and_epoch_alone(self):
        first = batch_at(0, 100, 50, seed=0)
        assert first == batch_at(0, 100, 50, seed=0)
        assert first != batch_at(0, 100, 50, seed=1)
        assert first != batch_at(2, 100, 50, seed=0)
        assert not set(first) & set(batch_at(1, 100, 50, seed=0))


class TestRate:
    @pytest.mark.parametrize("scheduler", SCHEDULES)
    @pytest.mark.parametrize(("pairs", "total", "warmup"), PAPER)
    def test_warmup_of_the_paper(self, pairs, total, warmup, scheduler):
        """ceil(.03 x steps) steps rise evenly; the last of them is at the peak, and the next."""
        rates = [learning_rate(s, total, 5e-8, 0.03, 0.1, scheduler) for s in range(total)]
        assert rates[:warmup] == pytest.approx([5e-8 * (s + 1) / warmup for s in range(warmup)])
        assert rates[warmup] == pytest.approx(5e-8)
        assert max(rates) <= 5e-8 * (1 + 1e-12)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)

    def test_worked_by_hand(self):
        """Ten steps, two of warm-up, peak 2, floor .2: at step 4 a quarter of the decay is over.

        cosine .2 + 1.8 x (1 + cos(45 deg)) / 2 = 1.736396, linear .2 + 1.8 x .75 = 1.55; halfway,
        at step 6, both are at .2 + .9.
        """
        rates = {s: [learning_rate(i, 10, 2.0, 0.2, 0.1, s) for i in range(11)] for s in SCHEDULES}
        assert [r[:3] for r in rates.values()] == [pytest.approx([1.0, 2.0, 2.0])] * 3
        assert rates["cosine"][4] == pytest.approx(1.736396)
        assert rates["linear"][4] == pytest.approx(1.55)
        assert rates["cosine"][6] == pytest.approx(1.1)
        assert rates["linear"][6] == pytest.approx(1.1)
        assert rates["constant"][2:] == pytest.approx([2.0] * 9)

    def test_cosine_is_the_default(self):
        assert learning_rate(4, 10, 2.0, 0.2, 0.1) == learning_rate(4, 10, 2.0, 0.2, 0.1, "cosine")

    @given(
        total=st.integers(1, 300), warmup=st.floats(0, 1), floor=st.floats(0, 1),
        scheduler=st.sampled_from(sorted(SCHEDULES)),
    )  # fmt: skip
    def test_never_zero_nor_above_the_peak(self, total, warmup, floor, scheduler):
        """Each step has an effect; unless all is warm-up, the step after the last is the floor."""
        rates = [learning_rate(s, total, 1.0, warmup, floor, scheduler) for s in range(total + 1)]
        assert all(0 < rate <= 1 + 1e-12 for rate in rates[:-1])
        if scheduler != "constant" and math.ceil(warmup * total) < total:
            assert rates[-1] == pytest.approx(floor)

    @pytest.mark.parametrize("total", [2, 10, 100, 512])
    @pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5])
    @pytest.mark.parametrize(
        ("scheduler", "name", "options"),
        [
            ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}),  # the paper's
            ("linear", "polynomial", {"lr_end": 0.2, "power": 1.0}),
            ("constant", "constant_with_warmup", {}),
        ],
    )
    def test_transformers(self, scheduler, name, options, total, ratio):
        """Its warm-up is one step later than ours, starting at zero; after it both are the same."""
        from transformers import TrainingArguments, get_scheduler

        warmup = TrainingArguments(warmup_steps=ratio, use_cpu=True).get_warmup_steps(total)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        curve = get_scheduler(name, optimizer, warmup, total, options)
        theirs = []
        for _ in range(total):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            curve.step()
        rates = [learning_rate(s, total, 2.0, ratio, 0.1, scheduler) for s in range(total)]
        assert rates[warmup:] == pytest.approx(theirs[warmup:])
        assert rates[: max(warmup - 1, 0)] == pytest.approx(theirs[1:warmup])
        if warmup:
            assert (theirs[0], rates[warmup - 1]) == (0, pytest.approx(2.0))

    def test_linear_without_floor_is_transformers_linear(self):
        from transformers import get_scheduler

        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        curve = get_scheduler("linear", optimizer, 0, 20)
        for step in range(20):
            assert curve.get_last_lr()[0] == pytest.approx(
                learning_rate(step, 20, 2.0, 0.0, 0.0, "linear")
            )
            optimizer.step()
            curve.step()


def test_recipes_may_name_every_scheduler_and_no_other():
    assert set(get_args(TuneSpec.model_fields["scheduler"].annotation)) == set(SCHEDULES)
    with pytest.raises(KeyError, match="cosin"):
        learning_rate(5, 10, 1.0, 0.0, 0.1, "cosin")
