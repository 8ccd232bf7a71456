"""Protects ids, chat templates and ends of pretrained models from GGUF files: exact strings.

llama.cpp's own reading of the same files (b11549, kept in tests/data/real_models) is the witness.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.real_models import files_of, find
from transformers import AutoTokenizer, GenerationConfig

from deltalearn.lm.chat import prompt_ids
from deltalearn.lm.load import end_ids_of_files, load_model, load_tokenizer
from deltalearn.lm.locate import locate
from deltalearn.lm.turn import turn_of

pytestmark = pytest.mark.slow
WITNESS = Path(__file__).parents[1] / "data" / "real_models" / "llama_cpp.json"
NAMES = ("smollm2", "qwen", "gemma")
ASKED = ({"role": "user", "content": "Hi"},)
RENDERED = {
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
    "Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<bos>Hi",
}
ENDS = {
    "smollm2": ("<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
    "qwen": ("<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
    "gemma": ("<eos>", {"<eos>", "<end_of_turn>"}),
}
TEXTS = [
    "def f(x):\n\tif x:\n        return {'a': [x ** 2, -1e-3]}  # TODO\n\n\n",
    "你好，世界！こんにちは、ｶﾀｶﾅ 안녕하세요 𠮷野家",
    "🙂🚀 👩‍👩‍👧 🇩🇪 🏳️‍🌈 👍🏽",
    "Größe café Ångström ﬁ ½ ① Привет שלום مرحبا नमस्ते สวัสดี",
    "  two  and   three spaces\n\n \n\t\ttabs\r\n\r\nend ",
    "\u200bzero\u00a0width\ufeff \u2028 \x00 \x7f",
    "12345 3.14159 1,000,000 0x1F 1e-9",
]


def chosen(name: str) -> str | None:
    return "raw" if name == "gemma" else None  # a base model without a template


@pytest.mark.parametrize("name", NAMES)
class TestTokenizer:
    def test_ids_are_those_of_llama_cpp(self, name):
        ours = load_tokenizer(files_of(name), chat=False)
        witness = json.loads(WITNESS.read_text(encoding="utf-8"))[name]["ids"]
        for text, ids in witness.items():
            if name == "qwen" and "\u0308" in text:  # which llama.cpp does not compose
                continue
            assert ours(text, add_special_tokens=False)["input_ids"] == ids, text
            assert ours.decode(ids) == text

    def test_every_text_survives(self, name):
        ours = load_tokenizer(files_of(name), chat=False)
        plain = AutoTokenizer.from_pretrained(files_of(name).directory)
        for text in TEXTS:
            ids = ours(text, add_special_tokens=False)["input_ids"]
            assert ours.decode(ids) == text
            assert plain(text, add_special_tokens=False)["input_ids"] == ids

    def test_template_and_ends_are_exact(self, name, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        files = locate(str(files_of(name).directory), None, chosen(name))
        tokenizer = load_tokenizer(files)
        (ids,) = prompt_ids(tokenizer, [ASKED])
        assert tokenizer.decode(ids) == RENDERED[name]
        eos, ends = ENDS[name]
        assert tokenizer.eos_token == eos
        assert turn_of(tokenizer).end == tokenizer.eos_token_id
        assert turn_of(tokenizer).before == ""
        expected = set(tokenizer.convert_tokens_to_ids(sorted(ends)))
        assert end_ids_of_files(files, tokenizer) == expected
        shipped = GenerationConfig.from_pretrained(files.directory)
        assert set(shipped.eos_token_id) == expected and not shipped.do_sample

    def test_next_tokens_are_those_of_llama_cpp(self, name, cpu):
        """It computes with activations in 8 bits, so to about a tenth of a nat."""
        files = files_of(name)
        model, tokenizer = load_model(files, cpu), load_tokenizer(files, chat=False)
        with torch.no_grad():
            ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
            found = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        witness = json.loads(WITNESS.read_text(encoding="utf-8"))[name]["next"]
        away = [abs(found[token].item() - logprob) for token, logprob in witness]
        assert found.argmax() == witness[0][0]
        assert max(away) < 0.4 and sum(away) / len(away) < 0.15, away


def test_files_are_those_that_the_tests_are_written_for():
    from helpers.real_models import MODELS

    for name in NAMES:
        if (path := find(name) if name == "smollm2" else None) is not None:
            assert path.stat().st_size == MODELS[name].size
