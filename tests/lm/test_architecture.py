"""Protects against models of another kind: what it is, in one line, before weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from deltalearn.errors import UserError
from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.lm.architecture import obstacle, require_causal
from deltalearn.lm.load import Placement, load_model
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.pipeline.tune_inputs import read_config
from deltalearn.records import Sampling

REFUSED = [  # (model_type, architecture, what is said); as these models' config.json have it
    ("t5", "T5ForConditionalGeneration", "is an encoder-decoder; a causal language model"),
    ("bart", "BartForConditionalGeneration", "is an encoder-decoder, of which only a part"),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", "is a vision-language model"),
    ("llama4", "Llama4ForConditionalGeneration", "a vision-language model, of which only a part"),
    ("qwen3_5", "Qwen3_5ForConditionalGeneration", "a vision-language model, of which only"),
    ("whisper", "WhisperForConditionalGeneration", "is a speech model, of which only a part"),
    ("wav2vec2", "Wav2Vec2ForCTC", "is a speech model"),
    ("bert", "BertForMaskedLM", "is an encoder that fills in masks, of which only a part"),
    ("llama", "LlamaForSequenceClassification", "is a classifier or reward model"),
    ("qwen2", "Qwen2ForRewardModel", "is a classifier or reward model"),
    ("qwen2", "Qwen2ForTokenClassification", "is a classifier of tokens"),
    ("mistral", "MistralModel", "is a model without a head, which gives embeddings"),
    ("vit", "ViTForImageClassification", "is an image model"),
    (None, None, "names no model_type"),
    ("of_next_year", "OfNextYearForCausalLM", "is unknown to transformers .*made with 9.9.9.*Upgr"),
]
FINE = [
    ("llama", "LlamaForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gemma3", "Gemma3ForConditionalGeneration"),  # saved whole, its towers as they were
    ("internlm3", "InternLM3ForCausalLM"),
    ("llama", None),
    ("mistral", "SomeProjectsMistral"),  # of another project: its weights decide
]


def config(kind: str | None, named: str | None) -> dict:
    return {"model_type": kind, "architectures": named and [named], "transformers_version": "9.9.9"}


@pytest.mark.parametrize(("kind", "named", "said"), REFUSED)
def test_another_kind_of_model_is_named(kind, named, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(kind, named)))
    files = ModelFiles("my model", tmp_path, "")
    with pytest.raises(UserError, match=f"^my model: .*{said}") as error:
        require_causal(files)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(("kind", "named"), FINE)
def test_a_causal_model_is_not_refused(kind, named):
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers has no {kind} yet")
    assert obstacle(config(kind, named)) == ""


def test_code_of_a_model_is_never_run():
    values = config("my_own", "MyOwnForCausalLM") | {"auto_map": {"AutoModel": "code.My"}}
    assert "own code (auto_map) is never run" in obstacle(values)


def test_a_diffusion_model_is_named():
    assert "diffusion model (UNet2D)" in obstacle({"_class_name": "UNet2D"})


@pytest.mark.parametrize("text", ["{", "[]", '"llama"'])
def test_a_broken_config_is_an_error_in_one_line(text, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"its config.json") as error:
        load_model(locate(str(tmp_path / "m")), Placement("cpu", "float32"))
    assert "\n" not in str(error.value)


def test_every_way_in_looks(tmp_path, tiny_model, cpu):
    """Tuning, answering and scoring, before a weight or a tokenizer is read."""
    shutil.copytree(tiny_model, tmp_path / "m")
    file: Path = tmp_path / "m" / "config.json"
    values = json.loads(file.read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    file.write_text(json.dumps(values))
    files = locate(str(tmp_path / "m"))
    for way in (
        lambda: read_config(files),
        lambda: load_model(files, cpu),
        lambda: TransformersEngine(files, cpu, Sampling(0.0, 1.0, 4), 64),
    ):
        with pytest.raises(UserError, match="classifier or reward model"):
            way()
