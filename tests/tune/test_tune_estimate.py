"""Protects the dry run: steps, warm-up, tokens by layout, useful work and the report's lines.

Small cases are worked out by hand; matrix products are counted on a real model by torch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_configs import small_llama
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.forward import layout_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.rows import choose_rows
from deltalearn.pipeline.tune_preview import report_dry_run
from deltalearn.recipe import TUNE, LoraSpec, TuneSpec, load_recipe
from deltalearn.tune.estimate import (
    GPUS,
    PairLengths,
    draw_lengths,
    dry_run,
    format_dry_run,
    known_config,
    useful_flops,
)
from deltalearn.tune.measure import measure_model

CONFIG = small_llama()
P, C, R = 100, 60, 40  # tokens of prompt, chosen and rejected in the cases worked out by hand


@pytest.fixture(scope="module")
def size():
    return measure_model(CONFIG, "float32")


def equal_pairs(count: int) -> PairLengths:
    return PairLengths(*(np.full(count, n) for n in (P, C, R)))


class TestSteps:
    @pytest.mark.parametrize(
        ("pairs", "steps", "warmup"),
        [(150_000, 4_687, 141), (100_000, 3_125, 94), (50_000, 1_562, 47), (16_384, 512, 16)],
    )
    def test_as_in_the_paper(self, size, pairs, steps, warmup):
        """ceil(epochs x floor(N / 32)) steps, ceil(0.03 x steps) of warm-up."""
        settings = load_recipe("tulu3-8b-pairs", command=TUNE).recipe.tune
        plan = dry_run(equal_pairs(pairs), size, settings, seed=42)
        assert (plan.steps, plan.warmup) == (steps, warmup)

    def test_held_out_pairs_are_not_trained_on(self, size):
        settings = TuneSpec(batch_size=4, eval_pairs=10)
        assert dry_run(equal_pairs(50), size, settings, 0).steps == 10

    def test_pairs_that_are_trained_on_are_planned(self, size):
        """Those held out are twice as long here, and not the last ones."""
        long = PairLengths(*(np.repeat([2 * n, n], [10, 40]) for n in (P, C, R)))
        settings = TuneSpec(batch_size=4, eval_pairs=8)
        plan = dry_run(long, size, settings, 0, train=np.arange(10, 50))
        assert (plan.pairs, plan.steps) == (40, 10)
        assert plan.layouts["shared"].tokens == 4 * (P + C + R)
        alone = dry_run(equal_pairs(40), size, TuneSpec(batch_size=4), 0)
        assert plan.flops == alone.flops

    def test_held_out_pairs_are_named_where_too_few_are_left(self, size):
        text = r"batch of 4 \(eval_pairs holds out 10 of 12\); give more pairs, fewer eval_pairs"
        with pytest.raises(UserError, match=text):
            dry_run(equal_pairs(12), size, TuneSpec(batch_size=4, eval_pairs=10), 0)

    def test_less_than_one_batch(self, size):
        with pytest.raises(UserError, match="3 pairs to train on do not fill one batch of 4"):
            dry_run(equal_pairs(3), size, TuneSpec(batch_size=4), 0)


class TestPlan:
    def test_tokens_of_each_layout(self, size):
        """4 pairs: shared 4 (P+C+R) = 800, packed 4 (2P+C+R) = 1,200, padded 8 (P+C) = 1,280."""
        plan = dry_run(equal_pairs(40), size, TuneSpec(batch_size=4, token_budget=10_000), 0)
        found = {k: (p.tokens, p.padding, p.repeated_prompt) for k, p in plan.layouts.items()}
        assert found["shared"] == (800, 0, 0)
        assert found["packed"] == pytest.approx((1200, 0, 1 / 3))
        assert found["padded"] == pytest.approx((1280, 80 / 1280, 400 / 1280))
        assert plan.layouts["shared"].micro_batches == (1,) * len(GPUS)

    def test_micro_batches_follow_the_budget_and_the_gpus(self, size):
        """800 tokens a step in forwards of 400: two on one GPU, one on two or more."""
        plan = dry_run(equal_pairs(40), size, TuneSpec(batch_size=4, token_budget=400), 0)
        assert plan.layouts["shared"].micro_batches == (2, 1, 1, 1)

    @pytest.mark.parametrize(
        ("layout", "tokens"), [("auto", P + C + R), ("packed", 2 * P + C + R), ("padded", 320)]
    )
    def test_a_pair_larger_than_the_budget_is_a_forward(self, size, layout, tokens):
        settings = TuneSpec(batch_size=4, token_budget=50, layout=layout)
        assert dry_run(equal_pairs(8), size, settings, 0).largest_forward == tokens

    def test_an_obstacle_makes_padded_rows(self, size):
        settings = TuneSpec(batch_size=4, token_budget=50)
        plan = dry_run(equal_pairs(8), size, settings, 0, obstacle="why")
        assert (plan.layout, plan.reason, plan.largest_forward) == ("padded", "why", 320)
        settings = TuneSpec(batch_size=4, layout="padded")
        assert dry_run(equal_pairs(8), size, settings, 0, obstacle="why").reason == ""
        for forced, text in (("layout", "packed"), ("attention", "sdpa")):
            with pytest.raises(UserError, match=f"{forced} '{text}' .*why"):
                settings = TuneSpec(batch_size=4, **{forced: text})
                dry_run(equal_pairs(8), size, settings, 0, obstacle="why")

    def test_sft_has_one_answer(self, size):
        plan = dry_run(equal_pairs(40), size, TuneSpec(method="sft", batch_size=4), 0)
        assert plan.layouts["shared"].tokens == 4 * (P + C)
        assert plan.reference_flops == 0


class TestLengths:
    def test_medians_limits_and_likeness(self):
        lengths = draw_lengths(20_000, (120, 400, 350), 0.8, 2048, seed=0)
        medians = [np.median(a) for a in (lengths.prompts, lengths.chosen, lengths.rejected)]
        assert medians == pytest.approx([120, 400, 350], rel=0.03)
        longest = lengths.prompts + np.maximum(lengths.chosen, lengths.rejected)
        assert longest.max() == 2048
        assert min(a.min() for a in (lengths.prompts, lengths.chosen, lengths.rejected)) >= 1
        logs = [np.log(a) for a in (lengths.prompts, lengths.chosen, lengths.rejected)]
        correlation = np.corrcoef(logs)
        assert correlation[1, 2] == pytest.approx(0.49, abs=0.05)  # 0.7 squared
        assert abs(correlation[0, 1]) < 0.05

    def test_the_same_seed_gives_the_same_lengths(self):
        one, same, other = (draw_lengths(50, (9, 9, 9), 0.5, 99, seed=s) for s in (1, 1, 2))
        assert np.array_equal(one.chosen, same.chosen)
        assert not np.array_equal(one.chosen, other.chosen)

    def test_unknown_architecture_lists_the_known(self):
        with pytest.raises(UserError, match=r"no config of 'x'; there are .*llama-3\.1-8b"):
            known_config("x")


class TestUsefulWork:
    def counted(self) -> tuple[int, int]:
        """(forward, forward and backward) of matrix products of one shared pair, by torch."""
        model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).train()
        trees = [Tree(range(P), (range(C), range(R)))]
        rows = choose_rows(model, trees, "shared", "sdpa")
        layout = make_layout(trees, rows, "cpu")
        totals = []
        for backward in (False, True):
            with FlopCounterMode(display=False) as counter:
                output = layout_logprobs(model, layout, rows)
                if backward:
                    output.sum().backward()
            counts = counter.get_flop_counts()
            # Old versions of transformers multiply matrices for the positions.
            rotary = next((counts[k] for k in counts if k.endswith("rotary_emb")), {})
            totals.append(
                sum(n - rotary.get(op, 0) for op, n in counts["Global"].items() if "mm" in str(op))
            )
        return totals[0], totals[1]

    def test_matrix_products_are_those_that_torch_counts(self, size):
        bare = replace(size, attention_width=0)
        training, forward = useful_flops(equal_pairs(1), bare, TuneSpec())
        counted, with_backward = self.counted()
        in_place = (
            2 * size.head_params * (C + R)
        )  # the head's weight gradient, which torch leaves out
        assert (forward[0], training[0]) == (counted, with_backward + in_place)

    def test_attention_to_what_is_visible(self, size):
        """4 x width x layers x (P^2 / 2 + C P + C^2 / 2 + R P + R^2 / 2), three times to train."""
        bare = replace(size, active=0, head_params=0)
        seen = 5000 + 6000 + 1800 + 4000 + 800
        training, forward = useful_flops(equal_pairs(1), bare, TuneSpec())
        assert forward[0] == 4 * 64 * 3 * seen
        assert training[0] == 3 * forward[0]

    def test_a_frozen_base_has_no_weight_gradients(self, size):
        """Two passes over the base instead of three, three over the adapters."""
        lora = LoraSpec(r=4)
        adapted = measure_model(CONFIG, "float32", lora)
        training, _ = useful_flops(equal_pairs(1), adapted, TuneSpec(lora=lora))
        _, forward = useful_flops(equal_pairs(1), size, TuneSpec())
        attention = 4 * 64 * 3 * 17_600
        expected = 2 * (forward[0] - attention) + 3 * attention + 6 * adapted.trained * (P + C + R)
        assert training[0] == expected


class TestReport:
    def lines(self, size, **changes) -> str:
        settings = TuneSpec(batch_size=4, **changes)
        plan = dry_run(equal_pairs(4_000), size, settings, 0)
        return format_dry_run(plan, (size, size), settings, "bfloat16", tflops=1e-6)

    def test_hours(self, size):
        """FLOPs of all steps and of the reference, over the rate and the seconds of an hour."""
        training, forward = useful_flops(equal_pairs(1), size, TuneSpec())
        hours = 4_000 * (training[0] + forward[0]) / 1e6 / 3600
        assert f"useful TFLOP/s a GPU: {hours:,.1f} h on 1, {hours / 2:,.1f} h on 2" in self.lines(
            size
        )

    def test_hours_of_a_run_that_has_begun(self, size):
        settings = TuneSpec(batch_size=4)
        plan = dry_run(equal_pairs(4_000), size, settings, 0)
        told = {"seconds": 9.0, "taken": 200, "where": "runs/x"}
        report = format_dry_run(plan, (size, size), settings, "bfloat16", **told)
        rate = plan.flops / 9.0 / 1e12
        assert report.endswith(
            f"At {rate:,.3g} useful TFLOP/s, measured over 200 steps in runs/x: "
            "2.5 h, 2.0 h of them left of that run"
        )
        given = format_dry_run(plan, (size, size), settings, "bfloat16", 1e-6, **told)
        assert "measured" not in given, "what is given counts"
        unknown = format_dry_run(plan, (size, size), settings, "bfloat16", where="runs/x")
        assert unknown.endswith(
            "give --tflops, or begin the run, whose log in runs/x then tells it"
        )

    def test_memory_of_every_number_of_gpus(self, size):
        text = self.lines(size)
        for row in ("1    whole", "2    DDP", "2    FSDP2", "4    DDP", "8    DDP", "8    FSDP2"):
            assert f"\n{row}" in text

    @pytest.mark.parametrize(
        ("share", "said", "again"),
        [
            ("auto", "auto (74.5 GiB a GPU, ASSUMED, there is no GPU here)", "0 of 3"),
            (0.3, "of 30% of the layers", "1 of 3"),
            (True, "on", None),
            (False, "off", None),
        ],
    )
    def test_layers_that_are_computed_again(self, size, monkeypatch, share, said, again):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        text = self.lines(size, gradient_checkpointing=share)
        assert f"gradient checkpointing {said}:\n" in text
        (head,) = [line for line in text.splitlines() if line.startswith("GPUs")]
        (row,) = [line for line in text.splitlines() if line.startswith("1    whole")]
        assert head.endswith("layers again") is (again is not None)
        assert row.endswith(again or "")

    def test_auto_depends_on_the_room_of_the_device(self, size, monkeypatch):
        monkeypatch.setattr("deltalearn.tune.estimate.room_expected", lambda device: (1, "tiny"))
        text = self.lines(size, gradient_checkpointing="auto")
        assert "auto (0.0 GiB a GPU, tiny)" in text
        assert "3 of 3" in text

    @pytest.mark.parametrize(
        ("changes", "there"),
        [
            ({"lora": LoraSpec(bits=4)}, False),
            ({"optimizer": "adafactor"}, False),
            ({"lora": LoraSpec()}, True),
        ],
    )
    def test_no_memory_of_what_is_refused(self, size, changes, there):
        assert ("FSDP2" in self.lines(size, **changes)) is there
        try:
            TuneSpec(shard=True, **changes)
            taken = True
        except ValueError:
            taken = False
        assert taken is there, "a recipe takes shard just where the table has it"

    def test_the_layout_that_runs_is_marked(self, size):
        (marked,) = [x for x in self.lines(size, layout="packed").splitlines() if "<-" in x]
        assert marked.startswith("packed")


@pytest.fixture(scope="module")
def headline() -> str:
    """The report of the shipped 8B recipe, with neither its pairs nor its model at hand."""
    return report_dry_run(load_recipe("tulu3-8b-pairs", command=TUNE), tflops=400)


def test_headline_recipe_without_weights_and_network(headline):
    assert "4,687 steps of 32 pairs" in headline
    assert "after 141 steps of warm-up" in headline
    assert "8,030,261,248 parameters (8,030,261,248 trained)" in headline
    assert "model     allenai/Llama-3.1-Tulu-3-8B-SFT: not on this disk; ASSUMED" in headline
    assert "not on this disk; ASSUMED: 150,000 usable pairs" in headline


@pytest.mark.slow
def test_adapters_change_the_headline_memory():
    loaded = load_recipe("tulu3-8b-pairs", ["lora.r=16", "max_pairs=3200"], command=TUNE)
    text = report_dry_run(loaded)
    assert "(41,943,040 trained)" in text
    assert "100 steps of 32 pairs" in text
