"""Protects models that come as GGUF files: the same weights, ids and settings, or a refusal.

transformers drops tensors and settings for which it has no place, splits text as GPT-2 does where
it does not know how, and takes defaults of a class for what is not in its table. Each of these is
another model under the old name.
"""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.gguf_files import ARCHITECTURES, config_of, gguf_of, tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from deltalearn.errors import UserError
from deltalearn.lm import gguf_convert
from deltalearn.lm import locate as locating
from deltalearn.lm.gguf_config import _llama3_factors
from deltalearn.lm.gguf_header import read_gguf_header
from deltalearn.lm.gguf_tokenizer import SPACE, WORDS, gguf_tokenizer
from deltalearn.lm.load import end_ids_of_files, load_model, load_tokenizer
from deltalearn.lm.locate import locate, locate_tokenizer
from deltalearn.lm.tokenizer import PROBES

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """What is made of a file lies in the test's own directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "deltalearn" / "models"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def original(request, tmp_path_factory, tiny_tokenizer) -> Path:
    return tiny(request.param, tiny_tokenizer, tmp_path_factory.mktemp("original") / request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_tokenizer) -> Path:
    return tiny("llama", tiny_tokenizer, tmp_path_factory.mktemp("llama") / "original")


@pytest.fixture(scope="module")
def whole(llama, tmp_path_factory) -> Path:
    return gguf_of(llama, tmp_path_factory.mktemp("whole") / "model.gguf")


def logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(5, 45).reshape(2, 20)).logits


def refused(place: Path, *texts: str) -> None:
    with pytest.raises(UserError) as error:
        locate(str(place))
    for text in (str(place), *texts):
        assert text in str(error.value)


# -- what is read --------------------------------------------------------------------------------


def test_directory_is_the_model_that_the_file_was_made_of(original, tmp_path):
    files = locate(str(gguf_of(original, tmp_path / "m.gguf")))
    ours = AutoModelForCausalLM.from_pretrained(files.directory)
    theirs = AutoModelForCausalLM.from_pretrained(original)
    assert ours.dtype == torch.float32
    kept, expected = ours.state_dict(), theirs.state_dict()
    assert kept.keys() == expected.keys()
    for name in kept:
        if ours.config.model_type == "gemma3_text" and name.endswith("norm.weight"):
            assert torch.equal(kept[name], expected[name] + 1 - 1)  # as the file has it
        else:
            assert torch.equal(kept[name], expected[name]), name
    torch.testing.assert_close(logits(files.directory), logits(original), rtol=1e-5, atol=1e-5)
    for name in ("sliding_window", "layer_types", "rope_parameters", "tie_word_embeddings"):
        assert getattr(ours.config, name, None) == getattr(theirs.config, name, None)


def test_tokenizer_is_that_of_the_original(original, tmp_path):
    files = locate(str(gguf_of(original, tmp_path / "m.gguf")))
    ours, plain = load_tokenizer(files), AutoTokenizer.from_pretrained(files.directory)
    expected = PreTrainedTokenizerFast.from_pretrained(original)
    for text in (*PROBES, "<|user|>hello<|end|>", ""):
        assert ours(text)["input_ids"] == expected(text)["input_ids"]
        if original.name != "qwen2":  # whose class composes text, which this file does not
            assert plain(text)["input_ids"] == expected(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text
    assert ours.chat_template == expected.chat_template
    for role in ("eos_token_id", "pad_token_id", "bos_token_id"):
        assert getattr(ours, role) == getattr(expected, role)
    assert end_ids_of_files(files, ours) == {expected.eos_token_id}
    assert GenerationConfig.from_pretrained(files.directory).eos_token_id == [ours.eos_token_id]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_quantised_numbers_are_those_of_the_package_gguf(llama, tmp_path, kind):
    import gguf

    file = gguf_of(llama, tmp_path / "m.gguf", kind)
    directory = locate(str(file)).directory
    kept = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    stored = {t.name: t for t in gguf.GGUFReader(str(file)).tensors}
    one = stored["blk.1.ffn_down.weight"]
    expected = torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy())
    assert torch.equal(kept["model.layers.1.mlp.down_proj.weight"], expected)


def test_fingerprint_is_of_the_content_alone(whole, llama, tmp_path):
    first = locate(str(whole))
    copy = locate(str(shutil.copy(whole, tmp_path / "copy.gguf")))
    other = locate(str(gguf_of(llama, tmp_path / "other.gguf", "Q8_0")))
    assert copy.fingerprint == first.fingerprint != other.fingerprint
    assert copy.directory == first.directory
    assert locate(str(first.directory)).fingerprint == first.fingerprint  # as others see it


def test_is_made_once_and_whole_or_not_at_all(whole, cache, monkeypatch):
    made = []

    def killed(place, file, directory):
        made.append(directory)
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_convert, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            locate(str(whole))
    assert made and not [path for path in cache.iterdir() if path.is_dir()]
    first = locate(str(whole))
    monkeypatch.setattr(gguf_convert, "convert", killed)
    assert locate(str(whole)) == first == locate_tokenizer(str(whole))


def test_file_of_a_hub_model_keeps_its_commit(whole, tmp_path, monkeypatch):
    asked = []

    def download(hub_id, revision, wanted, *, network=True):
        asked.append((hub_id, revision, list(wanted), network))
        folder = tmp_path / "0123abc"
        (folder / "in").mkdir(parents=True, exist_ok=True)
        shutil.copy(whole, folder / "in" / "m.gguf")
        return folder

    monkeypatch.setattr(locating, "download", download)
    files = locate("owner/name/in/m.gguf", "main")
    assert (files.commit, files.fingerprint) == ("0123abc", locate(str(whole)).fingerprint)
    assert asked == [("owner/name", "main", ["in/m.gguf"], True)]
    with pytest.raises(UserError, match=r"owner/name has no file other\.gguf"):
        locate("owner/name/other.gguf")
    for nowhere in ("./owner/name/m.gguf", "nowhere.gguf"):
        with pytest.raises(UserError, match="no such GGUF file"):
            locate(nowhere)
    with pytest.raises(UserError, match="has no effect on a file"):
        locate(str(whole), "main")


def test_precision_is_chosen_when_it_is_loaded(whole, cpu):
    import dataclasses

    files = locate(str(whole))
    full = load_model(files, cpu)
    half = load_model(files, dataclasses.replace(cpu, dtype="bfloat16"))
    for name, weight in full.state_dict().items():
        assert torch.equal(weight.to(torch.bfloat16), half.state_dict()[name])


# -- settings ------------------------------------------------------------------------------------

SCALINGS = {
    "linear": ({"rope_type": "linear", "factor": 4.0},
               {"__rope__scaling__type": "linear", "__rope__scaling__factor": 4.0}),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
             {"__rope__scaling__type": "yarn", "__rope__scaling__factor": 4.0,
              "__rope__scaling__original_context_length": 32}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_scaled_positions_are_read(family, kind, tmp_path, tiny_tokenizer):
    theirs, stored = SCALINGS[kind]
    rope = {"rope_theta": 5000.0, **theirs}
    original = tiny(family, tiny_tokenizer, tmp_path / "original", rope_parameters=rope)
    files = locate(str(gguf_of(original, tmp_path / "m.gguf", **stored)))
    torch.testing.assert_close(logits(files.directory), logits(original), rtol=1e-5, atol=1e-5)


def test_scaling_of_llama_3_is_recognised_by_its_factors(tmp_path, tiny_tokenizer, monkeypatch):
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    original = tiny("llama", tiny_tokenizer, tmp_path / "original", rope_parameters=rope)
    factors = _llama3_factors(rope, 8)
    rotary = AutoModelForCausalLM.from_pretrained(original).model.rotary_emb  # transformers' own
    plain = 500000.0 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(plain / torch.tensor(factors), rotary.inv_freq)
    file = with_tensor(original, tmp_path / "m.gguf", "rope_freqs.weight", factors)
    assert config_of(locate(str(file)).directory).rope_parameters == rope
    wrong = [*factors[:-1], 3.0]
    refused(
        with_tensor(original, tmp_path / "n.gguf", "rope_freqs.weight", wrong),
        "scales its positions",
    )


def with_tensor(original: Path, file: Path, name: str, numbers: list[float]) -> Path:
    """A GGUF file with one tensor more."""
    from unittest.mock import patch

    import numpy as np
    from helpers import gguf_files

    own = gguf_files._tensors
    more = (name, np.array(numbers, dtype=np.float32))
    with patch.object(gguf_files, "_tensors", lambda *given: [*own(*given), more]):
        return gguf_of(original, file)


def test_what_transformers_would_leave_out_is_refused(llama, tmp_path):
    other = {
        "__residual_scale": 0.5,
        "__attention__scale": 0.1,
        "__rope__scaling__type": "longrope",
    }
    for key, value in other.items():
        file = gguf_of(llama, tmp_path / f"{key}.gguf", **{key: value})
        refused(file, "give the model that it was made from")
    file = with_tensor(llama, tmp_path / "more.gguf", "blk.0.attn_sinks.weight", [1.0] * 4)
    refused(file, "numbers and transformers")


def test_windows_are_those_of_the_file(tmp_path, tiny_tokenizer):
    original = tiny("gemma3_text", tiny_tokenizer, tmp_path / "original", sliding_window=5)
    files = locate(str(gguf_of(original, tmp_path / "m.gguf")))
    assert config_of(files.directory).sliding_window == 5
    torch.testing.assert_close(logits(files.directory), logits(original), rtol=1e-5, atol=1e-5)


# -- what cannot be read -------------------------------------------------------------------------


def test_every_cut_and_every_foreign_file_is_said(whole, tmp_path):
    content = whole.read_bytes()
    for size in (0, 3, 4, 10, 24, 100, 2000, len(content) // 2, len(content) - 1):
        file = tmp_path / f"cut-{size}.gguf"
        file.write_bytes(content[:size])
        refused(file, "GGUF" if size < 4 else "damaged or cut off")
    foreign = tmp_path / "model.safetensors"
    foreign.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    refused(foreign, "is no GGUF file")
    (tmp_path / "old.gguf").write_bytes(b"GGUF\x01\0\0\0" + bytes(40))
    refused(tmp_path / "old.gguf", "version 1 is unknown")
    huge = tmp_path / "huge.gguf"  # a text longer than the file
    huge.write_bytes(b"GGUF\x03\0\0\0" + bytes(8) + b"\x01" + bytes(7) + b"\xff" * 8)
    refused(huge, "beyond its end")


def test_parts_of_several_files_are_named(whole, llama, tmp_path):
    refused(shutil.copy(whole, tmp_path / "m-00001-of-00002.gguf"), "llama-gguf-split --merge")
    refused(gguf_of(llama, tmp_path / "first.gguf", split__count=2), "llama-gguf-split --merge")
    locate(str(shutil.copy(whole, tmp_path / "m-00001-of-00001.gguf")))


def test_tokenizers_that_are_not_known_are_refused(llama, tmp_path):
    for key, value, said in (
        ("tokenizer__ggml__pre", "default", "'default'"),
        ("tokenizer__ggml__pre", None, "None"),
        ("tokenizer__ggml__model", "bert", "'bert'"),
        ("tokenizer__ggml__tokens", None, "no tokenizer"),
    ):
        refused(gguf_of(llama, tmp_path / "m.gguf", **{key: value}), said)


def test_architecture_that_transformers_does_not_read(llama, tmp_path):
    file = tmp_path / "m.gguf"
    content = gguf_of(llama, file).read_bytes().replace(b"llama", b"alien")
    file.write_bytes(content)
    refused(file, "does not read this GGUF file", "alien")


def test_missing_package_is_named(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(whole, "pip install -e '.[gguf]'")


def test_cache_that_cannot_be_written(whole, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused(whole, "XDG_CACHE_HOME")


# -- tokenizers of sentencepiece -----------------------------------------------------------------


def sentencepiece_ids(text: str, tokens: list[str], scores: list[float], prefix: bool) -> list[int]:
    """What sentencepiece does, literally: the best pair first, from the left."""
    ids = {token: i for i, token in enumerate(tokens)}
    pieces = list(((" " if prefix else "") + text).replace(" ", SPACE))
    while True:
        pairs = [
            (scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids
        ]
        if not pairs:
            break
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    found = []
    for piece in pieces:
        found += [ids[piece]] if piece in ids else [ids[f"<0x{b:02X}>"] for b in piece.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score(prefix):
    words = ["the", "then", "there", "here", "other", "he", "re", "er", "ther", "th"]
    pieces = sorted({SPACE + w for w in words} | set(words) | set("thenro") | {SPACE, SPACE * 2})
    grown = sorted({w[:n] for w in pieces for n in range(1, len(w) + 1)} | set(pieces))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *grown]
    scores = [0.0] * 259 + [-float((i * 37) % 101) for i in range(len(grown))]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(grown),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    tokenizer = gguf_tokenizer("m", metadata)
    for text in ("the other then", "there  here", "thththere re", "é the 你", "x"):
        expected = sentencepiece_ids(text, tokens, scores, prefix)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert tokenizer(text)["input_ids"] == [1, *expected]  # BOS, where the file does not say
        assert tokenizer.decode(expected) == text


# Words as llama.cpp splits them by its own regular expressions, a | between two.
SPLIT = "I'LL pay 12345 €! Größe\n\n  x"
EXPECTED = {
    "gpt-2": "I|'|LL| pay| 12345| €!| Größe|\n\n | x",
    "smollm": "I|'|LL| pay| |1|2|3|4|5| €!| Größe|\n\n | x",
    "llama-bpe": "I|'LL| pay| |123|45| €!| Größe|\n\n| | x",
    "qwen2": "I|'LL| pay| |1|2|3|4|5| €!| Größe|\n\n| | x",
    "tekken": "I|'LL| pay| |1|2|3|4|5| €!| Größe|\n\n| | x",
    "gpt-4o": "I'LL| pay| |123|45| €!| Größe|\n\n| | x",
}


@pytest.mark.parametrize("pre", EXPECTED)
def test_words_are_split_as_the_file_says(pre):
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<|e|>", *alphabet], "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [3] + [1] * 256, "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip
    backend = gguf_tokenizer("m", metadata).backend_tokenizer
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(SPLIT)]
    assert "|".join(SPLIT[a:b] for a, b in spans) == EXPECTED[pre]
    assert (backend.normalizer is not None) == (pre == "qwen2") == WORDS[pre].composed


def test_header_says_what_is_in_the_file(whole, llama):
    header = read_gguf_header("m", whole)
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert sum(header.sizes.values()) == sum(p.numel() for p in model.parameters())
    assert header.architecture == "llama" and header.settings["block_count"] == 3
