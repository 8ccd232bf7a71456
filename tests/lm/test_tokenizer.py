"""Protects the ids: what a tokenizer gives is what its file says, whatever class is named for it.

transformers builds some classes anew, with a pre-tokenizer of their own. A student would be trained
on ids that its model has never seen, and nothing would say so.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.stored import edit_json
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from deltalearn.errors import UserError
from deltalearn.lm import tokenizer as tokenizers_module
from deltalearn.lm.load import load_tokenizer
from deltalearn.lm.locate import locate

TEXTS = ["It is 12345 now", "cafe\u0301 Größe", "a  b\n\n c", "DON'T it's", "<|user|> x<|end|>y 你"]


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(tokenizers_module, "_said", set())


@pytest.fixture
def model(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """The tiny model with a tokenizer that has learnt numbers of several digits."""
    place = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    words = [*TEXTS, "is 12345 and 2024", "The quick brown fox"] * 9
    tiny_tokenizer.train_new_from_iterator(words, 400, show_progress=False).save_pretrained(place)
    return place


def digits(file: Tokenizer) -> None:
    """As SmolLM2 has it: digits one by one."""
    each = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.pre_tokenizer = pre_tokenizers.Sequence([each, byte_level])


def whitespace(file: Tokenizer) -> None:
    """A splitter of its own: no word starts with a space."""
    split = pre_tokenizers.Split(" ", "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    file.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])


def decomposed(file: Tokenizer) -> None:
    """A normalizer, which the ids of accents show alone."""
    file.normalizer = normalizers.NFD()


def lower_case(file: Tokenizer) -> None:
    file.normalizer = normalizers.Lowercase()


def strip_on_decoding(file: Tokenizer) -> None:
    """The ids are the same, the texts are not."""
    file.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])


def change(model: Path, how, name: str | None) -> Tokenizer:
    """Change the file and name a class for it; the file as the library tokenizers reads it."""
    place = str(model / "tokenizer.json")
    file = Tokenizer.from_file(place)
    how(file)
    file.save(place)
    edit_json(model / "tokenizer_config.json", tokenizer_class=name)
    return file


def lines_about(model: Path, capsys) -> list[str]:
    """What we said; transformers has its own warnings."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(model))]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (digits, "GPT2Tokenizer"),
        (digits, "CodeGenTokenizer"),
        (digits, "GPTNeoXTokenizer"),
        (whitespace, "Qwen2Tokenizer"),
        (whitespace, "GPT2TokenizerFast"),
        (decomposed, "Qwen2Tokenizer"),
        (decomposed, "CohereTokenizer"),
        (lower_case, "GPT2Tokenizer"),
        (strip_on_decoding, "GPT2Tokenizer"),
        (digits, "GemmaTokenizer"),  # transformers' class cannot even encode with this vocabulary
        (digits, "T5Tokenizer"),  # nor can it be made of this file
    ],
)
def test_the_file_is_followed_and_it_is_said(model, how, name, capsys, tiny_tokenizer):
    file = change(model, how, name)
    found = load_tokenizer(locate(str(model)))
    for text in TEXTS:
        ids = file.encode(text, add_special_tokens=False).ids
        assert found(text, add_special_tokens=False)["input_ids"] == ids
        assert found.decode(ids) == file.decode(ids, skip_special_tokens=False)
    (said,) = lines_about(model, capsys)
    assert said.startswith(f"{model}: tokenizer.json ") and said.endswith("the file is followed")
    for setting in ("eos_token_id", "pad_token_id", "chat_template", "model_max_length"):
        assert getattr(found, setting) == getattr(tiny_tokenizer, setting)
    load_tokenizer(locate(str(model)))
    assert not lines_about(model, capsys)  # once for each model


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizerFast", "NoSuchClass"])
def test_what_agrees_with_its_file_is_left_alone(model, name, capsys):
    file = change(model, digits, name)
    theirs = AutoTokenizer.from_pretrained(model)
    if any(theirs(text)["input_ids"] != file.encode(text).ids for text in TEXTS):
        pytest.skip(f"this version of transformers reads {name} otherwise")
    found = load_tokenizer(locate(str(model)))
    assert not lines_about(model, capsys)
    for text in TEXTS:
        assert found(text)["input_ids"] == file.encode(text).ids


def test_truncation_and_padding_of_the_file_are_no_difference(model, capsys):
    file = Tokenizer.from_file(str(model / "tokenizer.json"))
    file.enable_truncation(3)
    file.enable_padding(length=7)
    file.save(str(model / "tokenizer.json"))
    found = load_tokenizer(locate(str(model)))
    assert not lines_about(model, capsys)
    assert len(found("The quick brown fox jumps over it")["input_ids"]) > 7


def test_without_the_file_transformers_decides(model):
    """vocab.json and merges.txt alone, as older models have them."""
    values = json.loads((model / "tokenizer.json").read_text())["model"]
    (model / "vocab.json").write_text(json.dumps(values["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in values["merges"])
    (model / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (model / "tokenizer.json").unlink()
    edit_json(model / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    reference = AutoTokenizer.from_pretrained(model)
    found = load_tokenizer(locate(str(model)))
    assert type(found) is type(reference)
    assert found(TEXTS)["input_ids"] == reference(TEXTS)["input_ids"]


def test_what_cannot_be_made_to_agree_is_refused_with_text_and_ids(model, monkeypatch):
    change(model, digits, "GPT2Tokenizer")
    monkeypatch.setattr(tokenizers_module, "_of_file", lambda _directory, found, _file: found)
    with pytest.raises(UserError) as caught:
        load_tokenizer(locate(str(model)))
    text = str(caught.value)
    assert "cannot be read as tokenizer.json says" in text
    assert "'It is 12345 now" in text and "instead of [" in text
