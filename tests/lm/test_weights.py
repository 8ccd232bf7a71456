"""Protects against half a model: damaged, absent, surplus or unmerged weights are refused.

What is refused by `locate` is refused before anything is read, in whatever command, for vLLM and
for lm_eval alike.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.stored import adapter, edit_json, edit_weights, sharded
from helpers.tensors import stored_tensors
from peft import PeftModel
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.load import check_files, load_model, load_tokenizer
from deltalearn.lm.locate import locate

IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def shards(tmp_path, tiny_model) -> Path:
    return sharded(tiny_model, tmp_path / "shards")


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def refused(place: Path) -> str:
    with pytest.raises(UserError) as caught:
        locate(str(place))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{place}: ")
    return str(caught.value)


# -- files ---------------------------------------------------------------------------------------


def cut(data: bytes) -> bytes:
    return data[:-100]


def cut_in_the_header(data: bytes) -> bytes:
    return data[:200]


def empty(data: bytes) -> bytes:
    return b""


def longer(data: bytes) -> bytes:
    return data + b"\0" * 8


def html(data: bytes) -> bytes:
    return b"<!DOCTYPE html><html><body>404</body></html>"


def pointer(data: bytes) -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


@pytest.mark.parametrize("damage", [cut, cut_in_the_header, empty, longer, html, pointer])
@pytest.mark.parametrize("kind", ["single", "shard"])
def test_a_damaged_file_is_one_line(model, shards, damage, kind):
    place = model if kind == "single" else shards
    file = sorted(place.glob("*.safetensors"))[-1]
    file.write_bytes(damage(file.read_bytes()))
    text = refused(place)
    assert f"the model does not load: {file.name} is damaged" in text
    assert ("git lfs pull" in text) == (damage is pointer)


def test_headers_say_what_safetensors_says(shards, tiny_model):
    found = stored_tensors(str(shards), shards)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert {n: tuple(t["shape"]) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in expected.items()
    }


def test_an_absent_shard_is_named(shards):
    last = sorted(shards.glob("*.safetensors"))[-1]
    last.unlink()
    assert f"1 of them are absent, {last.name} first" in refused(shards)


def test_shards_without_their_index_are_refused(shards):
    (shards / "model.safetensors.index.json").unlink()
    assert "nor named by a model.safetensors.index.json" in refused(shards)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json cannot be read" in refused(shards)


def test_an_index_that_leaves_the_directory_is_refused(shards):
    first = sorted(shards.glob("*.safetensors"))[0]
    shutil.move(first, shards.parent / "elsewhere.safetensors")
    index = shards / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(first.name, "../elsewhere.safetensors"))
    assert "outside of the directory" in refused(shards)


def test_the_fingerprint_covers_shards_in_folders_and_further_templates(shards):
    first = sorted(shards.glob("*.safetensors"))[0]
    (shards / "sub").mkdir()
    shutil.move(first, shards / "sub" / first.name)
    index = shards / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(first.name, f"sub/{first.name}"))
    seen = {locate(str(shards)).fingerprint}
    data = bytearray((shards / "sub" / first.name).read_bytes())
    data[-1] ^= 1
    (shards / "sub" / first.name).write_bytes(data)
    seen.add(locate(str(shards)).fingerprint)
    (shards / "additional_chat_templates").mkdir()
    (shards / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    seen.add(locate(str(shards)).fingerprint)
    (shards / "checkpoint-3").mkdir()  # what is not loaded does not count
    (shards / "checkpoint-3" / "model.safetensors").write_text("x")
    seen.add(locate(str(shards)).fingerprint)
    assert len(seen) == 3


# -- names ---------------------------------------------------------------------------------------


def test_shards_make_the_same_model(shards, tiny_model, cpu):
    whole = load_model(locate(str(tiny_model)), cpu)
    assert torch.equal(logits(load_model(locate(str(shards)), cpu)), logits(whole))


def lacking(tensors) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def without_a_head(tensors) -> None:
    del tensors["lm_head.weight"]


def with_a_value_head(tensors) -> None:
    tensors["v_head.summary.weight"] = torch.ones(1, 32)


def with_a_third_layer(tensors) -> None:
    for name in [n for n in tensors if n.startswith("model.layers.1.")]:
        tensors[name.replace("layers.1", "layers.2")] = tensors[name].clone()


def of_another_width(tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(31)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lacking, "its files lack 1 weights, model.layers.1.mlp.up_proj.weight first"),
        (without_a_head, "its files lack 1 weights, lm_head.weight first"),
        (with_a_value_head, "hold 1 weights for which LlamaForCausalLM has no place, v_head"),
        (with_a_third_layer, "weights for which LlamaForCausalLM has no place, model.layers.2"),
        (of_another_width, "the model does not load"),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, cpu, change, says):
    edit_weights(model, change)
    with pytest.raises(UserError) as caught:
        load_model(locate(str(model)), cpu)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_of_its_own_counts_whatever_the_config_says(model, cpu, tmp_path):
    """transformers 4 and vLLM believe the config that is written, and tie."""
    expected = logits(AutoModelForCausalLM.from_pretrained(model))
    edit_json(model / "config.json", tie_word_embeddings=True)
    found = load_model(locate(str(model)), cpu)
    assert torch.equal(logits(found), expected)
    found.save_pretrained(tmp_path / "written")
    assert (
        json.loads((tmp_path / "written/config.json").read_text())["tie_word_embeddings"] is False
    )


@pytest.mark.parametrize("change", [lacking, without_a_head, with_a_value_head, of_another_width])
def test_what_others_load_is_looked_at_before(model, change):
    check_files(locate(str(model)), "vLLM")
    edit_weights(model, change)
    with pytest.raises(UserError, match="the model does not load: "):
        check_files(locate(str(model)), "vLLM")


def test_a_head_that_others_would_tie_is_refused(model):
    edit_json(model / "config.json", tie_word_embeddings=True)
    with pytest.raises(UserError, match="vLLM would believe the config; set tie_word_embeddings"):
        check_files(locate(str(model)), "vLLM")

    def same(tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(model, same)
    check_files(locate(str(model)), "vLLM")
    edit_weights(model, without_a_head)
    check_files(locate(str(model)), "vLLM")


def test_an_adapter_is_not_given_to_others_as_its_base(model, tmp_path):
    place = adapter(model, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"is an adapter, which vLLM is not given\. Merge"):
        check_files(locate(str(place)), "vLLM")


# -- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_merged_into_its_base(model, cpu, tmp_path, settings, with_config):
    place = adapter(model, tmp_path / "adapter", **settings)
    if with_config:  # as transformers' Trainer and others leave it beside
        shutil.copy(model / "config.json", place)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), place)
    files = locate(str(place))
    whole = load_model(files, cpu)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    found = logits(whole)
    assert torch.allclose(found, logits(reference), atol=1e-4)
    assert not torch.allclose(found, logits(load_model(locate(str(model)), cpu)), atol=1e-2)
    assert load_tokenizer(files).chat_template


def test_its_fingerprint_is_of_both_and_its_tokenizer_its_own(model, tmp_path, tiny_tokenizer):
    place = adapter(model, tmp_path / "adapter")
    seen = {locate(str(model)).fingerprint, locate(str(place)).fingerprint}
    edit_json(place / "adapter_config.json", lora_alpha=99)
    seen.add(locate(str(place)).fingerprint)
    edit_json(model / "generation_config.json", top_k=3)
    seen.add(locate(str(place)).fingerprint)
    tiny_tokenizer.save_pretrained(place)
    (place / "chat_template.jinja").write_text("own {{ messages[0]['content'] }}")
    files = locate(str(place))
    seen.add(files.fingerprint)
    assert len(seen) == 5
    assert load_tokenizer(files).chat_template.startswith("own")


def test_whole_weights_beside_an_adapter_are_refused(model, tmp_path):
    """Merged into them already, or not: nobody can know, and one of both would be wrong."""
    place = adapter(model, tmp_path / "adapter")
    for file in model.iterdir():
        shutil.copy(file, place)
    assert "nothing says whether the adapter is merged" in refused(place)


def no_base(place: Path) -> None:
    edit_json(place / "adapter_config.json", base_model_name_or_path="./nowhere")


def unnamed_base(place: Path) -> None:
    edit_json(place / "adapter_config.json", base_model_name_or_path=None)


def pickled(place: Path) -> None:
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")


def torn(place: Path) -> None:
    data = (place / "adapter_model.safetensors").read_bytes()
    (place / "adapter_model.safetensors").write_bytes(data[:-9])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_base, "is an adapter of ./nowhere, which is not to be had"),
        (no_base, "Merge it first: "),
        (unnamed_base, "cannot be read"),
        (pickled, "pickled adapters are not loaded"),
        (torn, "adapter_model.safetensors is damaged"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_line(model, tmp_path, damage, says):
    place = adapter(model, tmp_path / "adapter")
    damage(place)
    assert says in refused(place)


def test_an_adapter_that_does_not_fit_is_refused(model, cpu, tmp_path):
    """peft would leave out what it does not know, with a warning, and the base would answer."""
    place = adapter(model, tmp_path / "adapter")
    edit_json(place / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"cannot be merged .* weights have no place in it"):
        load_model(locate(str(place)), cpu)


def test_an_adapter_that_cannot_be_merged_is_refused(model, cpu, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(
        tmp_path / "prompts"
    )
    with pytest.raises(UserError, match="the adapter cannot be merged into"):
        load_model(locate(str(tmp_path / "prompts")), cpu)
