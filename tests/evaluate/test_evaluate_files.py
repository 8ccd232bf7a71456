"""Protects evaluation from half a model: what tuning and generation refuse, it refuses as well.

lm_eval would draw absent weights at random, score a base without its adapter, and read a tokenizer
otherwise than it was trained with; each gives a number that looks like any other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.completions import completions
from helpers.stored import adapter, bitsandbytes, edit_json, edit_weights

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, pre_tokenizers

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BackendOptions
from deltalearn.evaluate.harness.loading import loaded
from deltalearn.lm.load import Placement, load_model
from deltalearn.lm.locate import locate


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def opened(place: Path, **more):
    return loaded(
        BackendOptions(kind="hf", model=str(place), device="cpu", dtype="float32", **more)
    )


def score(model) -> float:
    asked = Instance("loglikelihood", {}, ("The quick brown", " fox jumps"), 0)
    return model.loglikelihood([asked], disable_tqdm=True)[0][0]


def lacking(place: Path) -> None:
    edit_weights(place, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))


def surplus(place: Path) -> None:
    edit_weights(place, lambda tensors: tensors.update({"score.weight": torch.ones(1, 32)}))


def torn(place: Path) -> None:
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", [lacking, surplus, torn])
@pytest.mark.parametrize("options", [{}, {"parallelize": False}], ids=["ours", "lm_eval's"])
def test_half_a_model_is_one_line(model, damage, options):
    damage(model)
    with pytest.raises(UserError, match="the model does not load: ") as caught:
        opened(model, options=options)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_scored_with_its_base(model, tmp_path):
    place = adapter(model, tmp_path / "adapter")
    load_model(locate(str(place)), Placement("cpu", "float32")).save_pretrained(tmp_path / "whole")
    for file in model.glob("*"):
        if not (tmp_path / "whole" / file.name).exists():
            shutil.copy(file, tmp_path / "whole")
    assert score(opened(place)) == pytest.approx(score(opened(tmp_path / "whole")), abs=1e-4)
    assert score(opened(place)) != pytest.approx(score(opened(model)), abs=1e-2)
    with pytest.raises(UserError, match="is an adapter, which lm_eval is not given"):
        opened(place, options={"parallelize": False})


def test_a_model_in_four_bits_is_scored_as_it_is_stored(tmp_path, tiny_tokenizer):
    place = bitsandbytes(tmp_path / "bnb", tiny_tokenizer, 4)
    assert score(opened(place)) == pytest.approx(score(opened(tmp_path / "bnb-source")), rel=0.2)


def test_ids_are_those_of_the_file_here_and_for_a_server(model):
    file = Tokenizer.from_file(str(model / "tokenizer.json"))
    split = pre_tokenizers.Split(" ", "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    file.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    file.save(str(model / "tokenizer.json"))
    edit_json(model / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    text = "The quick brown fox jumps"
    ids = file.encode(text).ids
    assert opened(model).tok_encode(text) == ids
    with completions() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        there = loaded(BackendOptions(kind="openai", model="m", url=url, tokenizer=str(model)))
        assert there.tok_encode(text) == ids
