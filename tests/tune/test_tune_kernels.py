"""Protects fused kernels: the right layers of one model get them, with unchanged results.

The kernels are Triton's and cannot run here, so plain functions of torch stand in for them, with
the arguments of liger-kernel 0.8.5; `benchmarks/gpu.py` runs the real ones where there is a GPU.
"""

from __future__ import annotations

import copy
import sys
from types import ModuleType

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import tiny_config
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from deltalearn.errors import UserError
from deltalearn.tune.kernels import FAMILIES, fuse_layers

IDS = torch.arange(14).view(2, 7)
CALLS: dict[str, int] = {}


def called(name: str) -> None:
    CALLS[name] = CALLS.get(name, 0) + 1


class Norm:
    @staticmethod
    def apply(x, weight, eps, offset, casting, in_place, row_mode):
        called("norm")
        assert not in_place, "its gradient may be another's too"
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if casting == "llama":
            return (weight + offset) * wide.to(x.dtype)
        assert casting == "gemma"
        return (wide * (offset + weight.float())).to(x.dtype)


class Silu:
    @staticmethod
    def apply(gate, up, *multipliers):
        called("silu")
        assert multipliers == (1.0, 1.0)
        return F.silu(gate) * up


class Gelu:
    @staticmethod
    def apply(gate, up):
        called("gelu")
        return F.gelu(gate, approximate="tanh") * up


def rotary(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    called("rotary")
    half = q.shape[-1] // 2
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return tuple(x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin for x in (q, k))


@pytest.fixture(autouse=True)
def liger(monkeypatch):
    CALLS.clear()
    names = ("liger_kernel", "liger_kernel.ops", "liger_kernel.transformers",
             "liger_kernel.transformers.rope")  # fmt: skip
    modules = {name: ModuleType(name) for name in names}
    ops = modules["liger_kernel.ops"]
    ops.LigerRMSNormFunction = Norm
    ops.LigerSiLUMulFunction, ops.LigerGELUMulFunction = Silu, Gelu
    modules["liger_kernel.transformers.rope"].liger_rotary_pos_emb = rotary
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def drawn(kind: str, **changes):
    config = tiny_config(kind, 64)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def computed(model):
    output = model(input_ids=IDS, labels=IDS, use_cache=False)
    output.loss.backward()
    return output.logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_layers_of_every_family_compute_the_same(kind):
    plain = drawn(kind)
    if kind == "gemma3":
        plain = plain.eval()
    fused = copy.deepcopy(plain)
    changed = fuse_layers(fused, "cuda")
    layers = fused.config.get_text_config().num_hidden_layers
    assert changed["mlps"] == changed["attentions"] == layers
    of_a_layer = {"qwen3": 4, "gemma2": 4, "gemma3": 6, "gemma3_text": 6}.get(kind, 2)
    assert changed["norms"] - changed["norms"] // layers * layers <= 2  # the last, a projector's
    assert changed["norms"] // layers == of_a_layer
    logits, gradients = computed(fused)
    activation = "gelu" if kind.startswith("gemma") else "silu"
    turning = sum(getattr(fused.config, "no_rope_layers", None) or [1] * layers)
    expected_calls = {"norm": of_a_layer * layers + 1, activation: layers, "rotary": turning}
    assert expected_calls == CALLS
    expected, expected_gradients = computed(plain)
    assert expected_calls == CALLS, "the other model of the process computes as ever"
    torch.testing.assert_close(logits, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name])
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_nothing_outside_of_the_model_is_touched():
    before = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm.forward
    model = drawn("llama")
    forward = model.forward
    fuse_layers(model, "cuda")
    assert (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm.forward) == before
    assert model.forward == forward, "the head and its loss stay ours"


def test_adapters_stay_in_use():
    model = drawn("llama")
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    plain = peft.get_peft_model(model, adapters)
    fused = copy.deepcopy(plain)
    fuse_layers(fused.get_base_model(), "cuda")
    logits, gradients = computed(fused)
    expected, expected_gradients = computed(plain)
    torch.testing.assert_close(logits, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name])
    assert any("lora_A" in name for name in gradients)


@pytest.mark.slow
def test_a_compiler_sees_the_fused_functions():
    """A function whose globals are not its module's must not be taken for the module's own."""
    model = drawn("llama")
    expected, _ = computed(model)
    fuse_layers(model, "cuda")
    CALLS.clear()
    for layer in model.model.layers:
        layer.compile(backend="eager")
    logits, _ = computed(model)
    torch.testing.assert_close(logits, expected)
    assert CALLS["rotary"] > 0
    torch._dynamo.reset()


class TestRefusals:
    def test_no_gpu(self):
        with pytest.raises(UserError, match="run on a GPU, not on cpu; leave kernels out"):
            fuse_layers(drawn("llama"), "cpu")

    @pytest.mark.parametrize("kind", ["gpt2", "phi3", "mamba"])
    def test_another_architecture(self, kind):
        model = drawn(kind)
        with pytest.raises(UserError, match=f"not for {kind}, only for llama, mistral"):
            fuse_layers(model, "cuda")
        assert not any("forward" in vars(module) for module in model.modules())

    def test_another_activation(self):
        with pytest.raises(UserError, match="llama with the activation relu, not silu"):
            fuse_layers(drawn("llama", hidden_act="relu"), "cuda")

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "liger_kernel.ops", None)
        with pytest.raises(UserError, match=r"needs liger-kernel.*\[kernels\].*leave kernels out"):
            fuse_layers(drawn("llama"), "cuda")
