"""Protects what a run leaves: others can read it, and it says so before the first step.

Side files are the source's, byte for byte; the config tells the truth of the weights beside it;
names, shapes and tied flags are those that transformers reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.stored import adapter, edit_json, edit_weights, sharded, wide_llama
from helpers.tensors import stored_tensors
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    MixtralConfig,
)

from deltalearn.errors import UserError
from deltalearn.lm.load import Placement, load_model
from deltalearn.lm.locate import locate
from deltalearn.lm.weights import write_header
from deltalearn.lm.write import NOTHING, check_written, rehearse, write_model
from deltalearn.recipe import TuneSpec
from deltalearn.tune.student import load_student, save_student, trainable_parameters

SIDE_FILES = {
    "special_tokens_map.json": '{"eos_token":   "<|end|>"}',
    "added_tokens.json": "{ }",
    "vocab.json": '{"a": 0}',
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "no real one",
    "preprocessor_config.json": '{"size": 3}',
    "processor_config.json": "{}",
    "generation_config.json": '{"top_k":7, "eos_token_id": [0, 3]}',
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
}
OTHERS = ("README.md", "modeling_x.py", "optimizer.pt", "trainer_state.json", "notes.json")


@pytest.fixture
def source(tmp_path, tiny_model) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "source"))


def saved(source: Path, out: Path, settings: TuneSpec | None = None, template=NOTHING) -> Path:
    """What an untouched student becomes."""
    files, settings = locate(str(source)), settings or TuneSpec()
    cpu = Placement("cpu", "float32")
    weights = trainable_parameters(load_student(files, settings, cpu, seed=0))
    save_student(weights, files, settings, cpu, out, template)
    check_written(out)
    return out


def test_side_files_are_copied_byte_for_byte_and_nothing_else(source, tmp_path):
    for name, text in SIDE_FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    for name in OTHERS:
        (source / name).write_text("{}")
    edit_json(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", odd=[1])
    out = saved(source, tmp_path / "final", TuneSpec(lora={"r": 2}))
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    for name in {*SIDE_FILES, *tokenizer}:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert found == {*SIDE_FILES, *tokenizer, "config.json", "model.safetensors"}
    beside = tmp_path / "adapter"
    for name in tokenizer:
        assert (beside / name).read_bytes() == (source / name).read_bytes()
    assert AutoTokenizer.from_pretrained(beside)("The fox")["input_ids"]


def test_the_config_stays_as_it_was_written_but_for_what_has_changed(source, tmp_path):
    """A config of transformers 4 stays one: newer names would be read as defaults by it."""
    values = json.loads((source / "config.json").read_text())
    for name in ("dtype", "rope_parameters"):
        values.pop(name, None)
    values |= {
        "torch_dtype": "bfloat16", "rope_theta": 5000.0, "odd": {"of": ["whoever"]},
        "transformers_version": "4.44.0", "auto_map": {"AutoConfig": "configuration_x.X"},
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(values))
    (source / "configuration_x.py").write_text("raise SystemExit('run')\n")
    out = saved(source, tmp_path / "final")
    written = json.loads((out / "config.json").read_text())
    del values["auto_map"]
    assert written == {**values, "torch_dtype": "float32"}
    assert AutoConfig.from_pretrained(out).rope_parameters["rope_theta"] == 5000.0
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.float32


def test_a_tokenizer_with_code_of_its_own_is_left_without(source, tmp_path):
    edit_json(
        source / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast", auto_map={"AutoTokenizer": ["x.X", None]},
    )  # fmt: skip
    out = saved(source, tmp_path / "final")
    before = json.loads((source / "tokenizer_config.json").read_text())
    del before["auto_map"]
    assert json.loads((out / "tokenizer_config.json").read_text()) == before
    assert AutoTokenizer.from_pretrained(out)("x")["input_ids"]


def test_a_class_that_reads_the_file_otherwise_is_not_named_again(source, tmp_path):
    """transformers and what builds on it give the tuned model the ids that it was tuned on."""
    file = Tokenizer.from_file(str(source / "tokenizer.json"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    file.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), byte_level]
    )
    file.save(str(source / "tokenizer.json"))
    edit_json(source / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    text = "The quick brown fox"
    assert AutoTokenizer.from_pretrained(source)(text)["input_ids"] != file.encode(text).ids
    out = saved(source, tmp_path / "final")
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == file.encode(text).ids
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    before = json.loads((source / "tokenizer_config.json").read_text())
    after = json.loads((out / "tokenizer_config.json").read_text())
    assert after == {**before, "tokenizer_class": "PreTrainedTokenizerFast"}


HYBRID = "{% if enable_thinking is defined and not enable_thinking %}no thoughts {% endif %}"
ASKED = [{"role": "user", "content": "ask"}]


def with_template(source: Path, before: str) -> str:
    """Let a student's template begin with `before`; what it renders without arguments."""
    file = source / "chat_template.jinja"
    file.write_text(before + file.read_text())
    return rendered(source)


def rendered(place: Path, **arguments) -> str:
    tokenizer = AutoTokenizer.from_pretrained(place)
    return tokenizer.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, **arguments
    )


def test_the_arguments_of_the_template_are_remembered(source, tmp_path):
    """By the model and by its adapter; whoever gives others has those."""
    plain, arguments = with_template(source, HYBRID), {"enable_thinking": False}
    out = saved(source, tmp_path / "final", TuneSpec(lora={"r": 2}), arguments)
    for place in (out, tmp_path / "adapter"):
        assert rendered(place) == "no thoughts " + plain == rendered(source, **arguments)
        assert rendered(place, enable_thinking=True) == plain
        assert (place / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    rehearse(locate(str(source)), "float32", tmp_path / "out", arguments)
    again = saved(out, tmp_path / "again", template={"enable_thinking": True})
    assert rendered(again) == plain


def test_arguments_that_cannot_be_remembered_are_refused_before_the_run(source, tmp_path):
    odd = "{%- macro f() -%}{{ a }}{%- endmacro -%}\n{{ f() }}{% set a = 3 %}"
    with_template(source, odd)
    with pytest.raises(UserError, match="cannot be written into its chat template as defaults"):
        rehearse(locate(str(source)), "float32", tmp_path / "out", {"a": 0})


def test_a_head_of_its_own_is_kept_and_the_config_says_so(source, tmp_path):
    edit_json(source / "config.json", tie_word_embeddings=True)
    out = saved(source, tmp_path / "final")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    before, after = (load_file(place / "model.safetensors") for place in (source, out))
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_a_head_that_is_the_embedding_stays_tied(source, tmp_path):
    def change(tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_weights(source, change)
    edit_json(source / "config.json", tie_word_embeddings=True)
    out = saved(source, tmp_path / "final")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


def test_shards_and_adapters_become_ordinary_models(tmp_path, tiny_model, cpu):
    for place in (
        sharded(tiny_model, tmp_path / "shards"), adapter(tiny_model, tmp_path / "lora"),
    ):  # fmt: skip
        out = saved(place, tmp_path / f"final of {place.name}")
        before, after = load_model(locate(str(place)), cpu), load_model(locate(str(out)), cpu)
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.equal(old, new)


# -- the rehearsal -------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
ARCHITECTURES = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma2": Gemma2Config(**SMALL),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
}


@pytest.mark.parametrize("kind", ["llama", *ARCHITECTURES])
def test_a_rehearsal_writes_what_the_run_will_write(tmp_path, tiny_tokenizer, kind, monkeypatch):
    """Names, shapes and dtypes, without the numbers; experts are fused and taken apart again."""
    place = tmp_path / "model"
    if kind == "llama":
        wide_llama(place, tiny_tokenizer)
    else:
        config = ARCHITECTURES[kind]
        config.vocab_size = len(tiny_tokenizer)
        config.bos_token_id = config.pad_token_id = None
        config.eos_token_id = tiny_tokenizer.eos_token_id
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
        tiny_tokenizer.save_pretrained(place)
    rehearsed = {}
    monkeypatch.setattr(
        "deltalearn.lm.write.check_written",
        lambda folder: rehearsed.update(stored_tensors("", folder)),
    )
    rehearse(locate(str(place)), "bfloat16", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    files, half = locate(str(place)), Placement("cpu", "bfloat16")
    weights = trainable_parameters(load_student(files, TuneSpec(), half, seed=0))
    save_student(weights, files, TuneSpec(), half, tmp_path / "final")
    written = stored_tensors("", tmp_path / "final")
    kept = ("dtype", "shape")
    assert {n: [t[k] for k in kept] for n, t in rehearsed.items()} == {
        n: [t[k] for k in kept] for n, t in written.items()
    }
    check_written(tmp_path / "final")


def test_headers_before_holes_are_what_safetensors_writes(tmp_path):
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16),
               "c": torch.zeros(2, dtype=torch.uint8)}  # fmt: skip
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    shapes = {"a": ("F32", [3, 5]), "b": ("BF16", [7]), "c": ("U8", [2])}
    write_header(tmp_path / "ours", shapes, {"format": "pt"})
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size
    assert (tmp_path / "ours").stat().st_blocks * 512 <= 8192


def test_what_could_not_be_read_again_is_refused_before_the_run(source, tmp_path, monkeypatch):
    """An architecture that writes a weight under a name that it does not read."""

    def renamed(_model, tensors):
        return {name.replace("model.norm", "model.other"): t for name, t in tensors.items()}

    monkeypatch.setattr("transformers.modeling_utils.revert_weight_conversion", renamed)
    with pytest.raises(UserError) as caught:
        rehearse(locate(str(source)), "float32", tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(f"{source}: the tuned model could be written and not read again: ")
    assert "lack 1 weights, model.norm.weight first" in text and ".rehearsal" not in text
    assert not list((tmp_path / "out").iterdir())


def lacks_weights(out: Path) -> None:
    edit_weights(out, lambda tensors: tensors.pop("model.norm.weight"))


def is_cut(out: Path) -> None:
    data = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(data[:-10])


def has_no_tokenizer(out: Path) -> None:
    (out / "tokenizer.json").unlink()


def says_it_is_quantised(out: Path) -> None:
    edit_json(out / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def is_of_another_size(out: Path) -> None:
    edit_json(out / "config.json", intermediate_size=48)


@pytest.mark.parametrize(
    "damage",
    [lacks_weights, is_cut, has_no_tokenizer, says_it_is_quantised, is_of_another_size],
)
def test_what_cannot_be_read_after_the_run_is_said(source, tmp_path, damage, cpu):
    (tmp_path / "final").mkdir()
    files = locate(str(source))
    write_model(load_model(files, cpu), files, tmp_path / "final")
    check_written(tmp_path / "final")
    damage(tmp_path / "final")
    with pytest.raises(UserError) as caught:
        check_written(tmp_path / "final")
    assert "\n" not in str(caught.value)
