"""Protects gradient checkpointing of some layers: same gradients, memory as estimated, no more."""

from __future__ import annotations

import functools
import json
from contextlib import nullcontext

import pytest
import torch
from helpers.small_configs import small_configs
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.forward import answer_logprobs, layout_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.torch_private import storage_id
from deltalearn.recipe import TuneSpec
from deltalearn.tune import (
    PairRow,
    ReferenceCache,
    checkpointing,
    prepare_examples,
    train,
    tune,
)
from deltalearn.tune.checkpointing import checkpoint_layers, layers_in
from deltalearn.tune.measure import decoder_layers, measure_model, saved_bytes
from deltalearn.tune.memory import FILLED, estimate_memory, format_estimate

LAYERS = 6
CONFIGS = small_configs(LAYERS)
TREES = [Tree(range(30), (range(60), range(40))) for _ in range(6)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


def drawn(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


@functools.cache
def measured(model_type: str):
    (config,) = [c for c in CONFIGS.values() if c.model_type == model_type]
    return measure_model(config, "float32")


def gradients(model, dtype="float32") -> list[torch.Tensor]:
    rows = choose_rows(model, TREES, "shared")
    low = dtype != "float32"
    with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
        sums = answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
    (sums[0::2] - sums[1::2]).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "layers"), [(False, 0), (0.1, 1), (0.5, 3), (True, 6)])
def test_the_first_layers_are_taken_and_gradients_are_the_same_to_the_bit(config, share, layers):
    plain, some = drawn(config), drawn(config)
    checkpoint_layers(some, share)
    taken = [layer.gradient_checkpointing for layer in decoder_layers(some)]
    assert taken == [True] * layers + [False] * (LAYERS - layers)
    dtype = "bfloat16" if share == 0.1 else "float32"
    for a, b in zip(gradients(some, dtype), gradients(plain, dtype), strict=True):
        assert torch.equal(a, b)


def kept_by_a_forward(model) -> tuple[int, int]:
    """(bytes that autograd keeps but for the weights themselves, tokens)."""
    rows = choose_rows(model, TREES, "padded")
    layout = make_layout(TREES, rows, "cpu")
    with saved_bytes() as found:
        output = layout_logprobs(model, layout, rows)
    assert output.requires_grad
    own = {storage_id(p.untyped_storage()) for p in model.parameters()}
    return sum(v for k, v in found.items() if k not in own), layout.input_ids.numel()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_memory_of_some_layers_is_what_autograd_keeps(config, share):
    """Within 10 %: the head's own input is the difference, and counted with the logits."""
    model = drawn(config)
    checkpoint_layers(model, share)
    kept, tokens = kept_by_a_forward(model)
    spec = TuneSpec(gradient_checkpointing=share)
    size = measured(config.model_type)
    found = estimate_memory(size, spec, "float32", tokens=tokens, device="cpu")
    assert found.again == layers_in(share, LAYERS)
    assert found.parts["activations"] == pytest.approx(kept, rel=0.1)


def test_a_share_is_rounded_up_as_a_person_would():
    assert [layers_in(s, 30) for s in (0, 0.01, 0.1, 0.3, 0.999, 1, True)] == [
        0, 1, 3, 9, 30, 30, 30,
    ]  # fmt: skip


class TestAuto:
    size = property(lambda self: measured("llama"))

    def needed(self, share, room=None, **options):
        spec = TuneSpec(gradient_checkpointing=share)
        return estimate_memory(
            self.size, spec, "float32", tokens=5000, device="cpu", room=room, **options
        )

    def test_as_few_layers_as_fit(self):
        least, most = self.needed(True).total, self.needed(False).total
        seen = set()
        for room in range(int(least / FILLED), int(most / FILLED) + 1, (most - least) // 20):
            found = self.needed("auto", room + 2)
            seen.add(found.again)
            assert found.total <= FILLED * (room + 2)
            if found.again:
                fewer = self.needed((found.again - 1) / LAYERS)
                assert fewer.again == found.again - 1
                assert fewer.total > FILLED * (room + 2)
        assert seen >= {1, 2, 3, 4}

    def test_room_for_all_and_for_nothing(self):
        assert self.needed("auto", 1 << 60).again == 0
        assert self.needed("auto", 1).again == LAYERS
        assert self.needed("auto", None).again == LAYERS
        assert self.needed("auto", 1).total == self.needed(True).total

    def test_the_line_before_the_start_says_how_many(self):
        assert f"6 of {LAYERS} layers are computed again" in format_estimate(self.needed(True))
        assert "computed again" not in format_estimate(self.needed(False))

    def test_unknown_activations_take_all_layers(self):
        model = drawn(CONFIGS["llama"])
        checkpoint_layers(model, "auto", None)
        assert all(layer.gradient_checkpointing for layer in decoder_layers(model))
        model = drawn(CONFIGS["llama"])
        checkpoint_layers(model, "auto", 2)
        taken = [layer.gradient_checkpointing for layer in decoder_layers(model)]
        assert taken == [True] * 2 + [False] * 4


def test_a_run_takes_what_fits_and_trains_the_same(tmp_path, monkeypatch):
    student = locate("package://deltalearn.lab/ladder/xs")
    rows = [
        PairRow(t, ({"role": "user", "content": f"rev {t}"},), t[::-1], t[:0:-1], "stop", "stop")
        for t in ("abcd", "bcda", "cdab", "dabc")
    ]
    examples, _ = prepare_examples(load_tokenizer(student), rows, 64)
    losses, said = {}, {}
    for name, share, room in (("kept", False, 0), ("little", "auto", 1), ("much", "auto", 1 << 50)):
        monkeypatch.setattr(train, "room_on", lambda device, room=room: room)
        spec = TuneSpec(lr=1e-3, batch_size=4, steps=2, gradient_checkpointing=share)
        said[name] = []
        with ReferenceCache(tmp_path / "reference.sqlite") as reference:
            tune(student, examples, spec, 0, tmp_path / name, reference=reference,
                 placement=place("cpu", "float32"), say=said[name].append)  # fmt: skip
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["kept"] == losses["little"] == losses["much"]
    memory = {
        name: next(x for x in lines if "memory estimated" in x) for name, lines in said.items()
    }
    assert "2 of 2 layers are computed again" in memory["little"]
    assert "again" not in memory["kept"] + memory["much"]


class TestRefusals:
    def test_a_model_that_takes_all_layers_or_none(self, monkeypatch):
        """No architecture of today; layers without a switch of their own are simulated."""
        monkeypatch.setattr(checkpointing, "decoder_layers", lambda _: [torch.nn.Linear(1, 1)] * 3)
        model = drawn(CONFIGS["llama"])
        with pytest.raises(UserError, match="llama computes all of its layers again or none"):
            checkpoint_layers(model, 0.5)
        checkpoint_layers(model, True)
        checkpoint_layers(model, "auto", 1)

    def test_a_model_that_cannot(self):
        model = drawn(CONFIGS["llama"])
        type(model).supports_gradient_checkpointing = False
        try:
            with pytest.raises(UserError, match="llama cannot compute its layers again"):
                checkpoint_layers(model, True)
        finally:
            type(model).supports_gradient_checkpointing = True

    @pytest.mark.parametrize("value", [1.5, -0.1, "half", None, [1]])
    def test_what_is_no_share(self, value):
        with pytest.raises(ValueError, match="true, false, auto or a share") as caught:
            TuneSpec(gradient_checkpointing=value)
        assert len(caught.value.errors()) == 1
