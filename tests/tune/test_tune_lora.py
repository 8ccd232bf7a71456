"""Protects adapters on architectures that are no plain stack of products.

What "all-linear" means is chosen so that it works; what cannot be adapted is named in one line; and
the parts of a multimodal model that a text does not pass stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.architectures import tiny_config
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.locate import ModelFiles
from deltalearn.recipe import LoraSpec
from deltalearn.tune.lora import adapted, adapters_line, left_out, other_towers
from deltalearn.tune.measure import measure_model

VOCABULARY = 64
FILES = ModelFiles("a model", Path("nowhere"), "")
ODD = {  # what is left out, by the end of its name
    "falcon_h1": "mamba.out_proj",
    "mamba": "mixer.out_proj",
    "jamba": "mamba.out_proj",
    "llama4_text": "feed_forward.router",
    "phimoe": "mlp.router",
    "deepseek_v4": "self_attn.o_a_proj",
}


def build(kind: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(kind, VOCABULARY)).eval()


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ODD)
def test_all_linear_is_what_can_be_adapted(kind):
    model = build(kind)
    spec = LoraSpec(r=2)
    assert {name for name in left_out(model, spec) if name.endswith(ODD[kind])}
    ids = torch.arange(5, 15).unsqueeze(0)
    before = model(input_ids=ids, use_cache=False).logits
    lora = adapted(model, spec, FILES, seed=0)
    after = lora(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(after, before)
    after.sum().backward()
    second = {n: p for n, p in trained(lora).items() if "lora_B" in n}  # the first ones begin at 0
    assert second and not any(ODD[kind] in name for name in second)
    reached = [n for n, p in second.items() if p.grad is not None and p.grad.any()]
    assert len(reached) > len(second) / 2


@pytest.mark.parametrize("kind", ["falcon_h1", "llama4_text"])
def test_the_estimate_counts_the_same_adapters(kind):
    spec = LoraSpec(r=2)
    counted = measure_model(tiny_config(kind, VOCABULARY), "float32", spec)
    model = adapted(build(kind), spec, FILES, seed=0)
    assert counted.trained == sum(p.numel() for p in trained(model).values())


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("mamba", "out_proj", "peft does not adapt a model: ValueError: .*out_proj"),
        ("falcon_h1", "out_proj", "peft does not adapt a model"),
        ("llama4_text", "router", r"router computes more than a product \(Llama4Router\)"),
        ("mixtral", "experts", "has no layer experts that can be adapted, but"),
    ],
)
def test_a_named_layer_that_cannot_be_adapted_is_named_in_one_line(kind, target, why):
    with pytest.raises(UserError, match=why) as error:
        adapted(build(kind), LoraSpec(r=2, targets=(target,)), FILES, seed=0)
    assert "\n" not in str(error.value) and "tune.lora" in str(error.value)


def test_a_layer_that_multiplies_by_itself_is_adapted():
    """Falcon has a class of its own for ordinary products."""
    names = trained(adapted(build("falcon"), LoraSpec(r=2), FILES, seed=0))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
    }  # fmt: skip


def test_stacked_experts_without_adapters_are_said_to_stay_frozen():
    """peft knows the experts of some types; of others they are one tensor, and no layer."""
    line = adapters_line(adapted(build("llama4_text"), LoraSpec(r=2), FILES, seed=0))
    assert line.startswith("LoRA on ") and "o_proj" in line
    assert "experts stacked in one tensor have no adapters" in line
    for kind in ("llama", "mixtral"):
        assert "experts" not in adapters_line(adapted(build(kind), LoraSpec(r=2), FILES, seed=0))


def test_towers_for_images_have_no_adapters():
    model = build("gemma3")
    assert other_towers(model) == ["model.vision_tower", "model.multi_modal_projector"]
    names = trained(adapted(model, LoraSpec(r=2), FILES, seed=0))
    assert names and all("language_model" in name for name in names)
    assert other_towers(build("llama")) == other_towers(build("opt")) == []
