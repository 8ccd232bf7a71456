"""Protects students and weak models that are stored in fewer bits.

Decided before anything is trained: given back in full, kept under adapters, or refused. What was
tuned is an ordinary model that others can read; a run never fails after its last step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.stored import adapter, bitsandbytes, edit_json, fp8, mxfp4
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from deltalearn.errors import UserError
from deltalearn.lm.load import Placement, load_model
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.lm.quantized import stored_dtype, stored_quantization, trained_as
from deltalearn.recipe import TuneSpec
from deltalearn.tune.student import load_student, save_student, trainable_parameters

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_tokenizer) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stored")
    return {
        "bnb4": bitsandbytes(folder / "bnb4", tiny_tokenizer, 4),
        "bnb8": bitsandbytes(folder / "bnb8", tiny_tokenizer, 8),
        "fp8": fp8(folder / "fp8", tiny_tokenizer),
        "mxfp4": mxfp4(folder / "mxfp4", tiny_tokenizer),
    }


KINDS = pytest.mark.parametrize("kind", ["bnb4", "bnb8", "fp8", "mxfp4"])


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits.float()


def weight(model, name: str = "model.layers.0.self_attn.q_proj.weight") -> torch.Tensor:
    return dict(model.named_parameters())[name]


def test_the_weights_given_back_are_those_of_other_implementations(stored, cpu):
    """bitsandbytes' own kernels, and transformers' in its usual precision."""
    import bitsandbytes.functional as bnb

    raw = AutoModelForCausalLM.from_pretrained(stored["bnb4"], device_map="cpu")
    layer = raw.model.layers[0].self_attn.q_proj.weight
    expected = bnb.dequantize_4bit(layer.data, layer.quant_state).float()
    assert torch.equal(weight(load_full(stored["bnb4"])), expected)

    raw = load_file(stored["bnb8"] / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    scale = raw[f"{name}.SCB"].float()[:, None] / 127
    found = weight(load_full(stored["bnb8"]))
    assert torch.allclose(found, raw[f"{name}.weight"].float() * scale, rtol=1e-5)

    for kind, config, name in (
        ("fp8", FineGrainedFP8Config(dequantize=True), "model.layers.0.mlp.up_proj.weight"),
        ("mxfp4", Mxfp4Config(dequantize=True), "model.layers.0.mlp.experts.down_proj"),
    ):
        ours = load_model(locate(str(stored[kind])), Placement("cpu", "bfloat16"), dequantize=True)
        theirs = AutoModelForCausalLM.from_pretrained(
            stored[kind], quantization_config=config, dtype=torch.bfloat16
        )
        assert torch.equal(weight(ours, name), weight(theirs, name).bfloat16())


def load_full(place: Path):
    return load_model(locate(str(place)), Placement("cpu", "float32"), dequantize=True)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_a_student_is_trained_in_full_and_written_as_an_ordinary_model(
    stored, kind, lora, cpu, tmp_path
):
    files, settings = locate(str(stored[kind])), TuneSpec(lora=lora)
    if kind == "mxfp4" and lora:
        settings = TuneSpec(lora={"r": 4, "targets": ["q_proj", "o_proj"]})
    student = load_student(files, settings, cpu, seed=0)
    weights = {n: p.detach() + 0.01 for n, p in trainable_parameters(student).items()}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert lora or weights.keys() == dict(student.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in trainable_parameters(student).items():
            parameter.copy_(weights[name])
    save_student(weights, files, settings, cpu, tmp_path / "final")
    again, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "final", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    assert "quantization_config" not in json.loads((tmp_path / "final/config.json").read_text())
    # Merged adapters leave a model in the precision that its config says: here not float32.
    own = stored_dtype(stored[kind])
    merged = lora is not None and own != "float32"
    assert merged or torch.allclose(logits(again), logits(student), atol=1e-4)
    assert (logits(again) - logits(student)).abs().max() < 0.02 * logits(student).abs().max()
    assert {t.dtype for t in load_file(tmp_path / "final/model.safetensors").values()} == {
        getattr(torch, own) if merged else torch.float32
    }
    second = locate(str(tmp_path / "final"))  # and can be tuned again
    assert trained_as(second, None) is None
    assert torch.equal(logits(load_student(second, TuneSpec(), cpu, seed=0)), logits(again))


def test_four_bits_can_stay_as_they_are_under_adapters(stored, cpu, tmp_path):
    files, settings = locate(str(stored["bnb4"])), TuneSpec(lora={"r": 4, "bits": 4})
    student = load_student(files, settings, cpu, seed=0)
    raw = AutoModelForCausalLM.from_pretrained(stored["bnb4"], device_map="cpu")
    mine = student.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(mine.data, raw.model.layers[0].mlp.up_proj.weight.data)
    weights = {n: p.detach() for n, p in trainable_parameters(student).items()}
    save_student(weights, files, settings, cpu, tmp_path / "final")
    again = load_model(locate(str(tmp_path / "final")), cpu)
    assert torch.allclose(weight(again), weight(load_full(stored["bnb4"])))


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weak_model_answers_as_it_is_stored(stored, kind, dtype):
    found = logits(load_model(locate(str(stored[kind])), Placement("cpu", dtype)))
    full = logits(load_full(stored[kind]))
    assert torch.allclose(found, full, atol=0.1 * full.abs().max().item())


def quantized(model: Path, tmp_path: Path, **config) -> ModelFiles:
    place = shutil.copytree(model, tmp_path / "stored")
    edit_json(place / "config.json", quantization_config=config)
    return locate(str(place))


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "hqq"},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "quanto", "weights": "int8"},
        {"quant_method": "of-tomorrow"},
        {"bits": 3},
    ],
    ids=lambda config: config.get("quant_method", "unnamed"),
)
@pytest.mark.parametrize("lora", [None, {"r": 4}, {"r": 4, "bits": 4}])
def test_what_cannot_be_trained_is_refused_before_it_is_read(
    tiny_model, tmp_path, cpu, config, lora
):
    files = quantized(tiny_model, tmp_path, **config)
    with pytest.raises(UserError, match="the model from which it was made") as caught:
        load_student(files, TuneSpec(lora=lora), cpu, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bnb8", "fp8", "mxfp4"])
def test_bits_of_weights_that_have_few_already_are_refused(stored, kind, cpu):
    with pytest.raises(UserError, match=r"stored in fewer bits already .* leave lora.bits out"):
        load_student(locate(str(stored[kind])), TuneSpec(lora={"bits": 4}), cpu, seed=0)


def test_a_missing_package_is_named(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("deltalearn.lm.quantized.find_spec", lambda name: None)
    files = quantized(tiny_model, tmp_path, quant_method="compressed-tensors")
    with pytest.raises(UserError, match="pip install compressed-tensors"):
        trained_as(files, None)


def test_a_weak_model_without_its_package_is_one_line(tiny_model, tmp_path, cpu):
    files = quantized(tiny_model, tmp_path, quant_method="gptq", bits=4, group_size=32)
    with pytest.raises(UserError, match="the model does not load") as caught:
        load_model(files, cpu)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_merged_into_a_base_that_is_given_back_in_full(stored, cpu, tmp_path):
    """QLoRA as others leave it: an adapter that names a base in four bits."""
    full = load_full(stored["bnb4"])
    full.save_pretrained(tmp_path / "full")
    place = adapter(tmp_path / "full", tmp_path / "adapter")
    edit_json(place / "adapter_config.json", base_model_name_or_path=str(stored["bnb4"]))
    from peft import PeftModel

    expected = logits(PeftModel.from_pretrained(full, place))
    files = locate(str(place))
    assert torch.allclose(logits(load_model(files, cpu)), expected, atol=1e-4)
    with pytest.raises(UserError, match=r"is an adapter, .* leave lora.bits out"):
        load_student(files, TuneSpec(lora={"bits": 4}), cpu, seed=0)


def test_where_it_is_written_does_not_matter(tiny_model, tmp_path):
    place = shutil.copytree(tiny_model, tmp_path / "nested")
    edit_json(place / "config.json", text_config={"quantization_config": {"quant_method": "awq"}})
    assert str(stored_quantization(place)) == "awq"
    assert stored_quantization(tiny_model) is None
