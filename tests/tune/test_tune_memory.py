"""Protects the memory estimate: counts that must be exact are, and activations are near the truth.

Truth is measured on the CPU: bytes of real parameters, gradients and moments after a real step,
and bytes that autograd really keeps of a forward.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from dataclasses import replace

import peft
import pytest
import torch
from helpers.architectures import tiny_config
from helpers.small_configs import small_configs
from transformers import AutoModelForCausalLM

from deltalearn.lm.forward import layout_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.torch_private import storage_id
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune.estimate import known_config
from deltalearn.tune.measure import measure_model, saved_bytes
from deltalearn.tune.memory import GIB, GPU_CONTEXT, estimate_memory, format_estimate
from deltalearn.tune.optimizer import make_optimizer

CONFIGS = small_configs()
TREES = [Tree(range(30), (range(60), range(40))) for _ in range(6)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


def real_model(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


@functools.cache
def measured(model_type: str, dtype: str, lora: LoraSpec | None):
    (config,) = [c for c in CONFIGS.values() if c.model_type == model_type]
    return measure_model(config, dtype, lora)


def parts(config, spec: TuneSpec, dtype="float32", tokens=100, **changes) -> dict[str, int]:
    size = measured(config.model_type, dtype, spec.lora)
    options = {"tokens": tokens, "device": "cpu", **changes}
    return dict(estimate_memory(size, spec, dtype, **options).parts)


def size_of(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class TestCounts:
    @pytest.mark.parametrize(
        ("name", "parameters"),
        [  # as the model cards' safetensors list them
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.2-3b", 3_212_749_824),
            ("qwen2.5-7b", 7_615_616_512),
        ],
    )
    def test_shapes_have_the_published_number_of_parameters(self, name, parameters):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known_config(name))
        assert sum(p.numel() for p in model.parameters()) == parameters

    @pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
    def test_weights_gradients_and_moments_are_exact(self, config, optimizer):
        spec = TuneSpec(optimizer=optimizer)
        model = real_model(config)
        trainer = make_optimizer(model, spec, torch.device("cpu"))
        model(torch.arange(8).unsqueeze(0)).logits.sum().backward()
        trainer.step()
        state = [v for s in trainer.state.values() for v in s.values() if torch.is_tensor(v)]
        found = parts(config, spec)
        assert found["weights"] == size_of(model.parameters())
        assert found["gradients"] == size_of(p.grad for p in model.parameters())
        assert found["moments"] == size_of(v for v in state if v.ndim)  # no counters of steps

    def test_eight_bit_moments(self):
        """Two bytes a number and two float32 a block of 256; eight bytes below 4,096 numbers."""
        model = real_model(CONFIGS["llama"])
        expected = 0
        for p in model.parameters():
            n = p.numel()
            expected += 8 * n if n < 4096 else 2 * n + 8 * math.ceil(n / 256)
        found = parts(CONFIGS["llama"], TuneSpec(optimizer="adamw_8bit"))
        assert found["moments"] == expected

    @pytest.mark.parametrize("named", [False, True])
    def test_adapters_are_those_of_peft(self, config, named):
        names = ("c_attn", "mlp.c_proj") if config.model_type == "gpt2" else ("q_proj", "v_proj")
        lora = LoraSpec(r=4, targets=names if named else ("all-linear",))
        chosen = list(names) if named else "all-linear"
        real = peft.get_peft_model(
            real_model(config).to(torch.bfloat16),
            peft.LoraConfig(r=4, target_modules=chosen, task_type="CAUSAL_LM"),
        )
        found = parts(config, TuneSpec(lora=lora), "bfloat16")
        trained = [p for p in real.parameters() if p.requires_grad]
        assert found["weights"] == size_of(real.parameters())
        assert found["gradients"] == size_of(trained)
        assert found["moments"] == 2 * size_of(trained)

    def test_quantised_base(self):
        """4 bits a weight of the layers' matrices, a byte a block of 64, 4 for 256 of those."""
        full, four = (
            parts(CONFIGS["llama"], TuneSpec(lora=LoraSpec(r=4, bits=bits)), "bfloat16")["weights"]
            for bits in (None, 4)
        )
        matrices = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
        assert full - four == matrices * 2 - (
            matrices // 2 + matrices // 64 + 4 * matrices // 64 // 256
        )

    def test_sharding_divides_and_replicas_do_not(self):
        spec = TuneSpec()
        alone = parts(CONFIGS["llama"], spec)
        ddp = parts(CONFIGS["llama"], spec, gpus=4)
        fsdp = parts(CONFIGS["llama"], TuneSpec(shard=True), gpus=4)
        for part in ("weights", "gradients", "moments"):
            assert ddp[part] == alone[part]
            assert fsdp[part] == alone[part] // 4
        assert fsdp["copies"] == 4 * (2 * 43_136 + 2 * 512 * 64 + 64)  # two layers, outside, norm
        assert ddp["activations"] == fsdp["activations"] == alone["activations"]


def kept_by_a_forward(model, layout_kind: str, dtype: str) -> tuple[int, int]:
    """(bytes that autograd keeps but for the weights themselves, tokens) of the loop's forward."""
    rows = choose_rows(model, TREES, layout_kind)
    layout = make_layout(TREES, rows, "cpu")
    low = dtype != "float32"
    with saved_bytes() as found, torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
        output = layout_logprobs(model, layout, rows)
    own = {storage_id(p.untyped_storage()) for p in model.parameters()}
    assert output.requires_grad
    return sum(v for k, v in found.items() if k not in own), layout.input_ids.numel()


class TestActivations:
    @pytest.mark.parametrize(
        ("layout", "dtype"), [("shared", "float32"), ("padded", "float32"), ("padded", "bfloat16")]
    )
    def test_near_what_autograd_keeps(self, config, layout, dtype):
        """Within 5 %: the head's own input is the difference, and counted with the logits."""
        kept, tokens = kept_by_a_forward(real_model(config), layout, dtype)
        found = parts(config, TuneSpec(), dtype, tokens=tokens)
        assert found["activations"] + found["copies"] == pytest.approx(kept, rel=0.05)

    def test_sharded_weights_compute_in_low_precision_throughout(self, config):
        """FSDP2 gathers weights in bfloat16: no autocast, a residual stream of half the size."""
        kept, tokens = kept_by_a_forward(real_model(config).bfloat16(), "padded", "float32")
        size = measure_model(config, "bfloat16", shard=True)
        found = estimate_memory(size, TuneSpec(shard=True), "bfloat16", tokens=tokens, gpus=2)
        assert found.parts["activations"] == pytest.approx(kept, rel=0.05)
        assert size.residual_bytes == 2

    def test_gradient_checkpointing_keeps_inputs_and_one_layer(self, config):
        """Within 20 %: of so few layers the head's part is large."""
        whole, tokens = kept_by_a_forward(real_model(config), "padded", "float32")
        model = real_model(config)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs, _ = kept_by_a_forward(model, "padded", "float32")
        found = parts(config, TuneSpec(gradient_checkpointing=True), tokens=tokens)
        assert found["activations"] == pytest.approx(inputs + whole / 3, rel=0.2)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_adapters_near_those_of_peft(self, dtype):
        config = CONFIGS["llama"]
        adapters = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(real_model(config).to(getattr(torch, dtype)), adapters)
        kept, tokens = kept_by_a_forward(model.get_base_model(), "padded", dtype)
        found = parts(config, TuneSpec(lora=LoraSpec(r=4)), dtype, tokens=tokens)
        assert found["activations"] == pytest.approx(kept, rel=0.05)

    def test_logits_are_bounded_however_long_the_forward(self):
        """Never the (tokens x vocabulary) matrix."""
        size = replace(measured("llama", "bfloat16", None), hidden=4096, head_params=4096 * 128256)
        long = estimate_memory(size, TuneSpec(), "bfloat16", tokens=65536).parts["logits"]
        assert long - 2 * 4 * 65536 * 4096 < 2 * GIB < 2 * 65536 * 128256

    def test_an_architecture_that_cannot_run_on_shapes_is_said(self, monkeypatch):
        size = measured("llama", "float32", None)
        monkeypatch.setattr(torch, "zeros", lambda *a, **k: 1 / 0)
        unknown = measure_model(CONFIGS["llama"], "float32")
        assert (unknown.saved, unknown.total) == (None, size.total)
        estimate = estimate_memory(unknown, TuneSpec(), "float32", tokens=10)
        assert not estimate.complete
        assert "activations of this architecture are not included" in format_estimate(estimate)


def test_measuring_touches_neither_memory_nor_randomness():
    before = torch.random.get_rng_state()
    measure_model(CONFIGS["llama"], "float32")
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_line_before_the_start_adds_up():
    size = measured("llama", "float32", None)
    estimate = estimate_memory(size, TuneSpec(), "float32", tokens=1000)
    assert estimate.complete
    assert estimate.total == sum(estimate.parts.values()) > GPU_CONTEXT
    line = format_estimate(estimate)
    assert line.startswith(f"memory estimated per device: {estimate.total / GIB:.2f} GiB (weights")
    assert "copies" not in line  # there are none in float32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma3", "gemma4_text", "rwkv", "gpt_oss", "bart", "dbrx"])
def test_no_architecture_stops_the_estimate(kind):
    """Weights that cannot be drawn on shapes, widths that differ by layer, experts, no layers."""
    config = tiny_config(kind, 64)
    counted = measure_model(config, "float32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.saved is None or counted.saved > 0
    found = estimate_memory(counted, TuneSpec(), "float32", tokens=1000)
    assert found.complete == (counted.saved is not None)
    assert ("not included" in format_estimate(found)) != found.complete
