"""Protects how the student is loaded, adapted, kept still and written (full, LoRA and QLoRA).

Guards: what is tuned is what is written, merged or not; the first step sees the untouched student;
other libraries read what we write.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
)

from deltalearn.errors import UserError
from deltalearn.lm.load import Placement, device_name, load_model
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.recipe import TuneSpec
from deltalearn.tune.student import (
    load_student,
    reference_view,
    save_student,
    silence_dropout,
    trainable_parameters,
)

IDS = torch.arange(2, 26).reshape(2, 12)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_dropout": 0.3,
}


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """Directory of a random 2-layer GPT-2 of width 32: tied embeddings, Conv1D layers, dropout."""
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=96,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    return _write(config, tmp_path_factory.mktemp("models") / "gpt2", tiny_tokenizer)


def _write(config, path: Path, tokenizer) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(params=["llama", "gpt2"])
def files(request: pytest.FixtureRequest) -> ModelFiles:
    name = "tiny_model" if request.param == "llama" else "tiny_gpt2"
    return locate(str(request.getfixturevalue(name)))


def lora(**changes) -> TuneSpec:
    return TuneSpec(lora={"r": 4, **changes})


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def original(files: ModelFiles) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(files.directory, dtype=torch.float32))


def train(model, steps: int = 3) -> dict[str, torch.Tensor]:
    """A few steps of plain likelihood; the trained weights, as a checkpoint would hold them."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def stored(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
@pytest.mark.parametrize(
    "use",
    [
        lambda files, placement: device_name(placement),
        load_model,
        lambda files, placement: load_student(files, TuneSpec(), placement, seed=0),
        lambda files, placement: load_student(files, lora(bits=4), placement, seed=0),
    ],
    ids=["name", "load", "student", "quantised"],
)
def test_a_device_that_is_not_here_is_refused(tiny_model, monkeypatch, device, use):
    """Neither a traceback of torch nor, in silence, another device."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match=rf"device {device}: .*none here, only cpu; use one"):
        use(locate(str(tiny_model)), Placement(device, "float32"))


class TestFull:
    def test_all_weights_train_in_float32_whatever_the_precision(self, files):
        model = load_student(files, TuneSpec(), Placement("cpu", "bfloat16"), seed=0)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert trainable_parameters(model) == dict(model.named_parameters())
        assert torch.equal(logits(model), original(files))

    def test_what_was_tuned_is_written_and_loads_elsewhere(self, files, cpu, tmp_path):
        model = load_student(files, TuneSpec(), cpu, seed=0)
        weights = train(model)
        save_student(weights, files, TuneSpec(), cpu, tmp_path / "final")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype="auto")
        assert torch.equal(logits(again), logits(model))
        assert not torch.equal(logits(again), original(files))
        assert {p.name for p in tmp_path.iterdir()} == {"final"}

    def test_stored_in_the_precision_of_the_run_with_tokenizer(self, tiny_model, tmp_path):
        files, half = locate(str(tiny_model)), Placement("cpu", "bfloat16")
        model = load_student(files, TuneSpec(), half, seed=0)
        weights = train(model)
        save_student(weights, files, TuneSpec(), half, tmp_path / "final")
        tensors = stored(tmp_path / "final")
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        assert all(torch.equal(t, weights[name].bfloat16()) for name, t in tensors.items())
        assert json.loads((tmp_path / "final/config.json").read_text())["dtype"] == "bfloat16"
        locate(str(tmp_path / "final"))  # refuses a directory without a tokenizer

    def test_tied_weights_are_stored_once_and_stay_tied(self, tiny_gpt2, cpu, tmp_path):
        files = locate(str(tiny_gpt2))
        model = load_student(files, TuneSpec(), cpu, seed=0)
        assert "lm_head.weight" not in trainable_parameters(model)
        save_student(train(model), files, TuneSpec(), cpu, tmp_path / "final")
        assert "lm_head.weight" not in stored(tmp_path / "final")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
        assert again.lm_head.weight is again.transformer.wte.weight

    def test_generation_settings_of_the_student_are_kept(self, tiny_model, cpu, tmp_path):
        shipped = {"temperature": 0.6, "top_k": 7, "do_sample": True, "eos_token_id": [0, 3]}
        source = shutil.copytree(tiny_model, tmp_path / "source")
        (source / "generation_config.json").write_text(json.dumps(shipped))
        files = locate(str(source))
        weights = trainable_parameters(load_student(files, TuneSpec(), cpu, seed=0))
        save_student(weights, files, TuneSpec(), cpu, tmp_path / "final")
        assert json.loads((tmp_path / "final/generation_config.json").read_text()) == shipped

    def test_a_failed_save_leaves_the_earlier_model(self, tiny_model, cpu, tmp_path, monkeypatch):
        files = locate(str(tiny_model))
        weights = dict(trainable_parameters(load_student(files, TuneSpec(), cpu, seed=0)))
        save_student(weights, files, TuneSpec(), cpu, tmp_path / "final")
        before = stored(tmp_path / "final")
        changed = {name: p.detach() + 1 for name, p in weights.items()}

        def fail(*_arguments):
            raise OSError("disk full")

        monkeypatch.setattr("deltalearn.lm.write.copy_tokenizer", fail)
        with pytest.raises(OSError, match="disk full"):
            save_student(changed, files, TuneSpec(), cpu, tmp_path / "final")
        after = stored(tmp_path / "final")
        assert all(torch.equal(before[name], after[name]) for name in before)
        monkeypatch.undo()  # and what the failure left does not stand in the way
        save_student(changed, files, TuneSpec(), cpu, tmp_path / "final")
        assert {p.name for p in tmp_path.iterdir()} == {"final"}

    def test_names_are_those_of_the_bare_model_also_when_wrapped(self, tiny_model, cpu):
        model = load_student(locate(str(tiny_model)), TuneSpec(), cpu, seed=0)
        wrapped = torch.nn.Module()
        wrapped.module = model
        assert list(trainable_parameters(wrapped)) == [n for n, _ in model.named_parameters()]


class TestLora:
    def test_starts_as_the_untouched_student(self, files, cpu):
        model = load_student(files, lora(), cpu, seed=0)
        assert torch.equal(logits(model), original(files))

    def test_only_adapters_are_trained(self, files, cpu):
        model = load_student(files, lora(), cpu, seed=0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        changed = train(model)
        assert changed and all("lora_" in name for name in changed)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (name not in changed)

    def test_frozen_base_in_the_precision_of_the_run_and_adapters_in_float32(self, files):
        model = load_student(files, lora(), Placement("cpu", "bfloat16"), seed=0)
        kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
        assert kinds == {(False, torch.bfloat16), (True, torch.float32)}

    def test_settings_reach_the_adapters(self, tiny_model, cpu):
        files = locate(str(tiny_model))
        model = load_student(files, lora(targets=("q_proj",), dropout=0.25), cpu, seed=0)
        layer = model.get_base_model().model.layers[0].self_attn.q_proj
        assert layer.r["default"] == 4
        assert layer.scaling["default"] == 2.0  # alpha / r, and alpha is 2 r unless given
        assert layer.lora_dropout["default"].p == 0.25
        assert all("q_proj" in name for name in trainable_parameters(model))
        given = load_student(files, lora(alpha=6), cpu, seed=0)
        assert given.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == 1.5

    def test_adapters_are_drawn_by_the_seed_alone(self, tiny_model, cpu):
        files, state = locate(str(tiny_model)), torch.get_rng_state()
        first, again, other = (
            torch.cat([p.flatten() for p in trainable_parameters(model).values()])
            for model in (load_student(files, lora(), cpu, seed=s) for s in (1, 1, 2))
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_reference_view_is_the_untouched_student_and_ends(self, files, cpu):
        model = load_student(files, lora(), cpu, seed=0)
        train(model)
        tuned = logits(model)
        with reference_view(model):
            assert torch.equal(logits(model), original(files))
        assert torch.equal(logits(model), tuned)
        assert not torch.equal(tuned, original(files))
        assert trainable_parameters(model)

    def test_reference_view_leaves_a_fully_tuned_student_alone(self, tiny_model, cpu):
        model = load_student(locate(str(tiny_model)), TuneSpec(), cpu, seed=0)
        with reference_view(model):
            assert torch.equal(logits(model), original(locate(str(tiny_model))))

    def test_merged_model_and_adapter_load_elsewhere_and_agree(self, files, cpu, tmp_path):
        from peft import PeftModel

        files = replace(files, name="org/student")
        model = load_student(files, lora(), cpu, seed=0)
        weights = train(model)
        save_student(weights, files, lora(), cpu, tmp_path / "final")
        tuned = logits(model)
        assert (tuned - original(files)).abs().max() > 0.1
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
        assert (logits(merged) - tuned).abs().max() < 1e-5 * tuned.abs().max()
        base = AutoModelForCausalLM.from_pretrained(files.directory)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert torch.equal(logits(adapted), tuned)
        assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
        config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/student"

    def test_merged_files_are_of_an_ordinary_model(self, files, cpu, tmp_path):
        model = load_student(files, lora(), cpu, seed=0)
        save_student(train(model), files, lora(), cpu, tmp_path / "final")
        names = set(stored(files.directory))
        assert set(stored(tmp_path / "final")) == names
        before = json.loads((files.directory / "config.json").read_text())
        after = json.loads((tmp_path / "final/config.json").read_text())
        assert after == before

    def test_a_target_the_student_lacks_is_refused(self, tiny_model, cpu):
        files = locate(str(tiny_model))
        for known, missing in (("q_proj", "c_attn"), ("v_proj", "all-linear"), ("mlp", "mlp")):
            with pytest.raises(UserError, match=rf"no layer {missing} .*down_proj.*q_proj"):
                load_student(files, lora(targets=(known, missing)), cpu, seed=0)

    def test_a_tied_target_is_refused(self, tiny_gpt2, cpu):
        for target in ("wte", "lm_head"):
            with pytest.raises(UserError, match="shares its weights"):
                load_student(locate(str(tiny_gpt2)), lora(targets=(target,)), cpu, seed=0)

    @pytest.mark.parametrize(
        ("settings", "package", "extra"),
        [(lora(), "peft", "lora"), (lora(bits=4), "bitsandbytes", "qlora")],
    )
    def test_a_missing_package_is_named(
        self, settings, package, extra, tiny_model, cpu, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package}.*pip install -e '\.\[{extra}\]'"):
            load_student(locate(str(tiny_model)), settings, cpu, seed=0)


class TestQuantized:
    """bitsandbytes computes on the CPU too, so nothing here is pretended."""

    @pytest.fixture
    def wide(self, tmp_path, tiny_tokenizer) -> ModelFiles:
        """Wide enough for a block of 64 weights; drawn narrow enough to survive rounding."""
        shape = {**SMALL, "hidden_size": 64, "intermediate_size": 128, "attention_dropout": 0.0}
        config = LlamaConfig(vocab_size=len(tiny_tokenizer), initializer_range=0.1, **shape)
        return locate(str(_write(config, tmp_path / "wide", tiny_tokenizer)))

    @pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit")])
    def test_base_is_quantised_and_close(self, wide, cpu, bits, kind):
        pytest.importorskip("bitsandbytes")
        model = load_student(wide, lora(bits=bits), cpu, seed=0)
        layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        assert type(layer).__name__ == kind
        away = (logits(model) - original(wide)).abs().max() / original(wide).abs().max()
        assert 0 < away < 0.3

    def test_four_bits_are_doubly_quantised_nf4(self, wide, cpu):
        pytest.importorskip("bitsandbytes")
        model = load_student(wide, lora(bits=4), cpu, seed=0)
        layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32

    @pytest.mark.parametrize("bits", [4])
    def test_only_adapters_are_trained_and_both_forms_are_written(self, wide, cpu, bits, tmp_path):
        pytest.importorskip("bitsandbytes")
        from peft import PeftModel

        settings = lora(bits=bits)
        model = load_student(wide, settings, cpu, seed=0)
        start = logits(model)
        weights = train(model, steps=8)
        assert weights and all("lora_" in name for name in weights)
        tuned = logits(model)
        assert not torch.equal(tuned, start)
        with reference_view(model):
            assert torch.equal(logits(model), start)
        save_student(weights, wide, settings, cpu, tmp_path / "final")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
        assert "quantization_config" not in (tmp_path / "final/config.json").read_text()
        unquantised = AutoModelForCausalLM.from_pretrained(wide.directory)
        adapted = PeftModel.from_pretrained(unquantised, tmp_path / "adapter")
        assert (logits(merged) - logits(adapted)).abs().max() < 1e-5 * tuned.abs().max()
        assert (logits(merged) - tuned).abs().max() < 0.5 * (tuned - start).abs().max()


CONFIGS = {
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=4, n_positions=96),
    "llama": lambda v: LlamaConfig(vocab_size=v, **SMALL),
    "gemma2": lambda v: Gemma2Config(vocab_size=v, head_dim=8, **SMALL),
    "phi": lambda v: PhiConfig(vocab_size=v, embd_pdrop=0.2, resid_pdrop=0.2, **SMALL),
    # These read the number from the config at every forward.
    "falcon": lambda v: AutoConfig.for_model(
        "falcon", vocab_size=v, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        attention_dropout=0.3, hidden_dropout=0.3,
    ),
    "gpt_neo": lambda v: AutoConfig.for_model(
        "gpt_neo", vocab_size=v, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global"], 2]], attention_dropout=0.3, resid_dropout=0.3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_silenced_model_in_train_mode_computes_as_in_eval_mode(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](64))
    still = logits(model)
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(input_ids=IDS, use_cache=False).logits, still)
        silence_dropout(model)
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, still)
    assert model.training


def test_dropout_of_lora_is_kept(tiny_gpt2, cpu):
    model = load_student(locate(str(tiny_gpt2)), lora(dropout=0.5), cpu, seed=0)
    silence_dropout(model)
    model.train()
    untouched = original(locate(str(tiny_gpt2)))
    assert torch.equal(model(input_ids=IDS, use_cache=False).logits, untouched)
    train(model)
    model.train()
    twice = [model(input_ids=IDS, use_cache=False).logits for _ in range(2)]
    assert not torch.equal(*twice)
