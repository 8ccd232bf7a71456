"""The tokenizer of a GGUF file, as the file of Hugging Face that its model was published with.

A GGUF file has a vocabulary, merges or scores, and the name of a way to split text into words.
transformers takes the words of GPT-2 where it does not know that name: other ids than the model was
trained on. Here a name that is not known is an error, as it is for llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from deltalearn.errors import UserError

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # kinds of tokens
SPACE = "▁"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ANY = r"[^\r\n\p{L}\p{N}]?"
LLAMA3 = rf"{_CONTRACTIONS}|{_ANY}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|{_ANY}\p{{L}}+|\p{{N}}{_REST}"
TEKKEN = rf"{_ANY}{_UPPER}*{_LOWER}+|{_ANY}{_UPPER}+{_LOWER}*|\p{{N}}{_REST_SLASH}"
GPT4O = (
    rf"{_ANY}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_ANY}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_REST_SLASH}"
)


@dataclass(frozen=True)
class Words:
    """The way byte-level BPE splits text before it merges.

    Attributes:
        pattern: A regular expression of words; None for that of GPT-2.
        digits: Digits stand alone before that.
        composed: Text is composed first (NFC).
        whole: A word that is a token is one, whatever its merges.
        bos: A text begins with BOS where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole: bool = False
    bos: bool = False


_OF_LLAMA3 = Words(LLAMA3, whole=True, bos=True)
_OF_QWEN2 = Words(QWEN2, composed=True)
WORDS = {  # by `tokenizer.ggml.pre`
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), Words()),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        Words(digits=True),
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _OF_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Words(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _OF_QWEN2),
    "stablelm2": Words(QWEN2),
    "tekken": Words(TEKKEN, whole=True, bos=True),
    "gpt-4o": Words(GPT4O),
}
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Ids that end an answer beside EOS, and control tokens that end one wherever they exist, as
# llama.cpp has it: a file names one end alone, the published generation config often several.
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TOKENS = frozenset(
    ["<|endoftext|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
     "<|end_of_text|>", "<EOT>", "<｜end▁of▁sentence｜>"]
)  # fmt: skip


def gguf_tokenizer(name: str, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a GGUF file.

    Args:
        name: The model, for errors.
        metadata: Of the file.

    Returns:
        The tokenizer with its chat templates, if the file has any.

    Raises:
        UserError: If the file has none, or one of a kind that is not known here.
    """
    of = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
    kind, tokens = of.get("model"), of.get("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{name}: the file has no tokenizer; give the model that it was made from")
    if kind == "gpt2":
        backend, adds_bos = _byte_level(name, of)
    elif kind == "llama":
        backend, adds_bos = _sentencepiece(name, of), True
    else:
        raise UserError(
            f"{name}: its tokenizer is of the kind {kind!r}, which is not read from GGUF files; "
            "give the model that it was made from"
        )
    kinds = zip(tokens, of.get("token_type") or (), strict=False)
    backend.add_tokens(
        [  # one that is no token as it is written (spaces of sentencepiece) is made by merges
            AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, kind in kinds
            if kind in (CONTROL, USER_DEFINED) and backend.token_to_id(token) is not None
        ]
    )
    special = {role: _token(tokens, of.get(key)) for role, key in SPECIAL.items()}
    if of.get("add_bos_token", adds_bos) and special["bos_token"] is not None:
        backend.post_processor = _begins_with(special["bos_token"], of["bos_token_id"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in special.items() if token is not None},
    )
    tokenizer.chat_template = chat_templates(metadata)
    return tokenizer


def chat_templates(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template of a GGUF file, or its templates by name, or None."""
    default = metadata.get("tokenizer.chat_template")
    start = "tokenizer.chat_template."
    named = {k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)}
    if not named:
        return default
    return {**({"default": default} if default else {}), **named}


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Every id that ends an answer of the model of a GGUF file; EOS first."""
    of = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items()}
    kinds = of.get("token_type") or ()
    marks = [
        i
        for i, (token, kind) in enumerate(zip(of["tokens"], kinds, strict=False))
        if kind == CONTROL and token in END_TOKENS
    ]
    return list(dict.fromkeys([*(of[key] for key in ENDS if key in of), *marks]))


def _token(tokens: Sequence[str], index: int | None) -> str | None:
    return tokens[index] if index is not None and 0 <= index < len(tokens) else None


def _begins_with(bos: str, index: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, index)],
    )


def _byte_level(name: str, of: Mapping[str, Any]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE, and whether a text begins with BOS by default."""
    if (pre := of.get("pre")) not in WORDS:
        raise UserError(
            f"{name}: splits text in the way {pre!r} (tokenizer.ggml.pre), which is not known "
            f"here; known: {', '.join(sorted(WORDS))}. Give the model that it was made from"
        )
    words = WORDS[pre]
    merges = [tuple(merge.split(" ")) for merge in of.get("merges") or ()]
    vocabulary = {token: i for i, token in enumerate(of["tokens"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=words.whole))
    if words.composed:
        tokenizer.normalizer = normalizers.NFC()
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.pattern is not None:
        split.append(pre_tokenizers.Split(Regex(words.pattern), behavior="isolated"))
    own = words.pattern is None
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, words.bos


def _sentencepiece(name: str, of: Mapping[str, Any]) -> Tokenizer:
    """BPE of sentencepiece, whose merges follow from its scores."""
    tokens = [SPACE * len(t) if t and not t.strip(" ") else t for t in of["tokens"]]
    scores, unknown = of.get("scores"), _token(tokens, of.get("unknown_token_id"))
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{name}: its tokenizer has no scores; give the model it was made from")
    kinds = of.get("token_type") or [1] * len(tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = _merges(vocabulary, scores, kinds)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", SPACE)
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if of.get("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        decode.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def _merges(
    vocabulary: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, in the order in which sentencepiece merges them.

    What a user has defined (runs of spaces, for example) is found before anything is merged.
    """
    found = []
    for token, index in vocabulary.items():
        if kinds[index] in (CONTROL, BYTE):
            continue
        rank = (0, index) if kinds[index] == USER_DEFINED else (1, -scores[index])
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                found.append((*rank, index, vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
