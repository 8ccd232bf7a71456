"""Protects the fast path from text to ids: what it says is what the tokenizer says, to the id.

Texts are cut into pieces that are tokenised once; these tests hold it against the tokenizer itself
on hostile white space, and check that tokenizers for which cuts would be wrong get whole texts.
"""

from __future__ import annotations

import copy
import json
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from deltalearn.lm import encode
from deltalearn.lm.encode import Encoder, fingerprint, puts_space_first

TEXT = [
    "The quick brown fox. It's a fox, isn't it? (Yes!)\n\nAnd the dog:  does not mind; 12,345.67",
    "def f(x):\n    return x + 1  # a comment\n\n\tTabs, too.",
    "Größe, naïve café à la carte, 你好世界, Привет мир, 🙂🚀",
]
# The word patterns of GPT-2 (ByteLevel's own), of Llama 3 and Qwen 2, and of GPT-4o.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt2": None,
    "llama3": WORDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+" + REST,
    "gpt4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + WORDS
    + "?"
    + REST,
}
ALPHABET = "ab1é你.,'!(\n\t\r\u00a0\u3000\u2028-_<|" + " " * 6
texts = st.lists(st.text(ALPHABET, max_size=40) | st.text(max_size=20), max_size=8)


def byte_level(pattern: str | None, **options) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=options.pop("prefix", False))
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        level.use_regex = False
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        inner.pre_tokenizer = level
    inner.normalizer = options.pop("normalizer", None)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", **options)


def metaspace() -> PreTrainedTokenizerFast:
    """Like Llama 2: a space before every text, words not split first."""
    inner = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "</s>"],
        initial_alphabet=list(string.printable),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def by_pattern() -> dict[str, PreTrainedTokenizerFast]:
    return {name: byte_level(pattern) for name, pattern in PATTERNS.items()}


@pytest.fixture(scope="module")
def encoders(by_pattern) -> dict[str, Encoder]:
    return {name: Encoder(tokenizer) for name, tokenizer in by_pattern.items()}


def ids(encoder: Encoder, given: list[str]) -> list[list[int]]:
    return [found.tolist() for found in encoder.encode(given)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
@given(given=texts)
@settings(max_examples=150)
def test_pieces_give_the_ids_of_whole_texts(by_pattern, encoders, name, given):
    given = ["a <|im_start|>user\nb", *given]
    expected = by_pattern[name](given, add_special_tokens=False)["input_ids"]
    found = encoders[name].encode(given)
    assert encoders[name]._cuts, "the fast path is what is tested here"
    assert [i.tolist() for i in found] == expected
    assert found.faithful.all()
    assert found.ends.tolist()[-1] == len(found.tokens)


def test_each_piece_is_tokenised_once(by_pattern, monkeypatch):
    encoder = Encoder(by_pattern["llama3"])
    encoder.encode(["a word", "another word."])
    asked: list[str] = []
    inner = encoder._pieces.ids
    monkeypatch.setattr(encoder._pieces, "ids", lambda t: (asked.extend(t), inner(t))[1])
    encoder.encode(["a word", "another new word, another."])
    assert asked == [" new", ",", " another"]


def test_known_pieces_are_forgotten_before_they_fill_the_memory(by_pattern, monkeypatch):
    encoder = Encoder(by_pattern["gpt2"])
    monkeypatch.setattr(encode, "KEPT_BYTES", 500)
    expected = [by_pattern["gpt2"](t, add_special_tokens=False)["input_ids"] for t in TEXT]
    for _ in range(3):
        assert [ids(encoder, [t])[0] for t in TEXT] == expected
    assert len(encoder._pieces._place) < len({word for t in TEXT for word in t.split(" ")})


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(None, prefix=True),  # the start of a text differs from its middle
        byte_level(None, normalizer=normalizers.NFKC()),
        byte_level(r".*\n|.+"),  # lines instead of words: tokens have spaces inside
        metaspace(),
    ],
    ids=["prefix space", "NFKC", "lines", "metaspace"],
)
def test_other_tokenizers_are_given_whole_texts(tokenizer):
    encoder = Encoder(tokenizer)
    given = ["a b", " a  b\n", "the quick brown fox, the dog", "", *TEXT[:2]]
    assert not encoder._cuts
    assert ids(encoder, given) == tokenizer(given, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("added", "cuts"),
    [(AddedToken("<x y>"), False), (AddedToken("<x>", rstrip=True), False), ("w.x", True)],
)
def test_added_tokens_are_never_cut(added, cuts):
    tokenizer = byte_level(None)
    tokenizer.add_tokens([added])
    assert Encoder(tokenizer)._cuts == cuts
    given = ["a <x y> b w.x. w. <x>  b"]
    assert ids(Encoder(tokenizer), given) == tokenizer(given, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_disagrees_gets_whole_texts(monkeypatch):
    """Should the rules ever miss something: the first texts are compared."""
    monkeypatch.setattr(encode, "_cuts_before", lambda description: set("."))
    tokenizer = byte_level(r".*\n|.+")
    given = ["the quick brown fox does not mind"]
    encoder = Encoder(tokenizer)
    assert ids(encoder, given) == tokenizer(given, add_special_tokens=False)["input_ids"]
    assert not encoder._cuts


def test_what_does_not_survive_is_not_faithful():
    given = ["fox", "ü fox", " fox"]  # an unknown letter; a space that the decoder takes away
    assert Encoder(metaspace()).encode(given).faithful.tolist() == [True, False, False]
    composing = Encoder(byte_level(None, normalizer=normalizers.NFC()))
    assert composing.encode(["e\u0301 a", "é a"]).faithful.tolist() == [False, True]


def test_continuing_text_gets_no_space_of_the_tokenizer():
    for tokenizer in (metaspace(), byte_level(None, prefix=True)):
        assert puts_space_first(tokenizer)
        joined = tokenizer("\nfox", add_special_tokens=False)["input_ids"]
        encoder = Encoder(tokenizer, continuing=True)
        (found,) = ids(encoder, ["fox"])
        assert joined[-len(found) :] == found
        assert found != tokenizer("fox", add_special_tokens=False)["input_ids"]
        assert encoder.encode(["fox", " fox", "  fox "]).faithful.all()
    assert not puts_space_first(byte_level(None))


def test_nothing_and_empty_texts(by_pattern):
    encoder = Encoder(by_pattern["gpt2"])
    assert ids(encoder, []) == []
    assert ids(encoder, ["", "a", ""]) == [[], encoder.encode(["a"]).tokens.tolist(), []]


def test_leftovers_of_a_padded_call_do_no_harm(by_pattern):
    tokenizer = by_pattern["gpt2"]
    tokenizer.pad_token = "<|im_end|>"
    expected = tokenizer(["a b c d", "a"], add_special_tokens=False)["input_ids"]
    encoder = Encoder(tokenizer)
    tokenizer(["a b", "a b c"], padding=True, truncation=True, max_length=2)
    assert ids(encoder, ["a b c d", "a"]) == expected


@pytest.mark.parametrize("setting", ["false", None])
def test_the_threads_setting_is_restored(by_pattern, monkeypatch, setting):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if setting:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", setting)
    Encoder(by_pattern["gpt2"]).encode(TEXT)
    assert os.environ.get("TOKENIZERS_PARALLELISM") == setting


def test_fingerprint_covers_what_decides_the_ids_and_nothing_else(tiny_tokenizer):
    def changed(**settings) -> str:
        inner = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
        given = {"eos_token": "<|end|>", "chat_template": "a", **settings}
        return fingerprint(PreTrainedTokenizerFast(tokenizer_object=inner, **given))

    assert changed() == changed(padding_side="left", model_max_length=7)
    assert len({changed(), changed(chat_template="b"), changed(eos_token="<|pad|>")}) == 3
    description = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    description["model"]["merges"].pop()
    other = Tokenizer.from_str(json.dumps(description))
    fewer = PreTrainedTokenizerFast(tokenizer_object=other, eos_token="<|end|>", chat_template="a")
    assert fingerprint(fewer) != changed()
    used = copy.deepcopy(tiny_tokenizer)  # which keeps its truncation for good
    used(["a"], padding=True, truncation=True, max_length=5)
    assert fingerprint(used) == fingerprint(tiny_tokenizer)
