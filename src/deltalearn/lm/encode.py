"""Ids of very many texts, exactly the tokenizer's own, and whether each text survives them.

A byte-level BPE (GPT-2, Llama 3, Qwen, OLMo, SmolLM, ...) never joins a word with the space or the
full stop that follows it, so the ids of a text are those of its pieces, cut at such places. Each
distinct piece is tokenised once; the rest is a lookup. Other tokenizers are given whole texts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from deltalearn.util.files import digest

# Bytes with which a white-space character of UTF-8 can end.
WHITE = {*range(9, 14), *range(28, 33), *range(0x80, 0x8B), 0x9F, 0xA0, 0xA8, 0xA9, 0xAF}
SPACE = 32
IS_WHITE, IS_SPACE, IS_LETTER, IS_MARK = 1, 2, 4, 8  # kinds of bytes, as flags
PUNCTUATION = set('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~')  # no apostrophe: "it's" may be a word
KEPT_BYTES = 256 * 2**20  # about what known pieces may occupy; above it they are all forgotten
PIECE_BYTES = 128  # what a piece costs besides its text
CHECKED_TEXTS = 64  # compared with the tokenizer's ids of the whole text before pieces are trusted


@dataclass(frozen=True)
class Encoded:
    """Ids of texts, and which of them survive the tokenizer.

    Attributes:
        tokens: (N,) int32, text after text.
        ends: (texts,) int64, end of each text in `tokens`.
        faithful: (texts,) bool; True if decoding the ids gives the text back.
    """

    tokens: np.ndarray
    ends: np.ndarray
    faithful: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        """The ids of each text, as a view."""
        start = 0
        for end in self.ends.tolist():
            yield self.tokens[start:end]
            start = end


class Encoder:
    """Texts to ids, without the special tokens that a tokenizer puts around a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, continuing: bool = False) -> None:
        """Prepare to encode with `tokenizer`.

        Args:
            tokenizer: Any of transformers.
            continuing: True if texts go on from something before them; a tokenizer that puts a
                space before every text (SentencePiece's dummy prefix) must then not.
        """
        description = _description(tokenizer)
        marks = _cuts_before(description)
        self._cuts = marks is not None
        self._kinds = bytes(_kind(byte, marks or set()) for byte in range(256))
        self._pieces = _Pieces(*_functions(tokenizer, description, continuing))
        self._checked = not self._cuts

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of every text, in order."""
        if not self._checked:
            self._checked = True
            self._cuts = self._agrees(texts[:CHECKED_TEXTS])
        return self._encode(texts)

    def _agrees(self, texts: Sequence[str]) -> bool:
        whole = self._pieces.ids(list(texts))
        return [ids.tolist() for ids in self._encode(texts)] == [list(ids) for ids in whole]

    def _encode(self, texts: Sequence[str]) -> Encoded:
        raw = [text.encode() for text in texts]
        data = b"".join(raw)
        text_ends = np.cumsum(np.array([len(r) for r in raw], dtype=np.int64))
        bounds = self._bounds(data, text_ends)
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
        pieces = pa.Array.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)
        distinct = pieces.dictionary_encode()
        known = self._pieces.places(distinct.dictionary.to_pylist(), forget=not self._cuts)
        # Not to_numpy(): it imports pandas, half a second.
        indices = np.frombuffer(distinct.indices.buffers()[1], np.int32, len(pieces))
        place = known[indices]
        lengths = self._pieces.lengths[place]
        ends = np.cumsum(lengths)
        source = np.repeat(self._pieces.starts[place] - (ends - lengths), lengths)
        source += np.arange(len(source))
        last = np.searchsorted(bounds, text_ends)  # how many pieces end with the text or before
        broken = np.concatenate([[0], np.cumsum(~self._pieces.faithful[place])])[last]
        token_ends = np.concatenate([[0], ends])[last]
        return Encoded(self._pieces.tokens[source], token_ends, np.diff(broken, prepend=0) == 0)

    def _bounds(self, data: bytes, text_ends: np.ndarray) -> np.ndarray:
        """Where pieces begin and end in the bytes of all texts: (pieces + 1,) int64."""
        cut = np.zeros(len(data) + 1, dtype=bool)
        cut[0] = True
        cut[text_ends] = True
        if self._cuts:
            kinds = np.frombuffer(data.translate(self._kinds), dtype=np.uint8)
            before, here = kinds[:-1], kinds[1:]
            cut[1:-1] |= ((here & IS_SPACE) != 0) & ((before & IS_WHITE) == 0)
            cut[1:-1] |= ((here & IS_MARK) != 0) & ((before & IS_LETTER) != 0)
        return np.flatnonzero(cut)


class _Pieces:
    """Distinct pieces of text with their ids, all in one array.

    tokens: (N,) int32; starts, lengths: (pieces,) int64; faithful: (pieces,) bool.
    """

    def __init__(
        self,
        ids: Callable[[list[str]], list[list[int]]],
        texts: Callable[[list[list[int]]], list[str]],
    ) -> None:
        self.ids = ids
        self._texts = texts
        self._forget()

    def _forget(self) -> None:
        self._place: dict[bytes, int] = {}
        self._bytes = 0
        self.tokens = np.zeros(0, dtype=np.int32)
        self.starts = self.lengths = np.zeros(0, dtype=np.int64)
        self.faithful = np.zeros(0, dtype=bool)

    def places(self, pieces: list[bytes], *, forget: bool) -> np.ndarray:
        """Index of each piece in the arrays; those not met before are tokenised first."""
        if forget or self._bytes > KEPT_BYTES:
            self._forget()
        found = np.array([self._place.get(piece, -1) for piece in pieces], dtype=np.int64)
        new = np.flatnonzero(found < 0)
        if len(new):
            found[new] = np.arange(len(self._place), len(self._place) + len(new))
            self._add([pieces[i] for i in new.tolist()])
        return found

    def _add(self, new: list[bytes]) -> None:
        texts = [piece.decode() for piece in new]
        ids = self.ids(texts)
        lengths = np.array([len(i) for i in ids], dtype=np.int64)
        starts = len(self.tokens) + np.cumsum(lengths) - lengths
        faithful = [a == b for a, b in zip(texts, self._texts(ids), strict=True)]
        self._place |= zip(new, range(len(self._place), len(self._place) + len(new)), strict=True)
        self._bytes += sum(map(len, new)) + PIECE_BYTES * len(new)
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        self.tokens = np.concatenate([self.tokens, flat])
        self.starts = np.concatenate([self.starts, starts])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.faithful = np.concatenate([self.faithful, np.array(faithful, dtype=bool)])


def puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if "a" becomes the token of " a" (SentencePiece's dummy prefix, add_prefix_space)."""
    tokens = tokenizer.tokenize("a")
    return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides which ids a text or a conversation gets."""
    return digest(
        {
            "backend": _description(tokenizer) or sorted(tokenizer.get_vocab().items()),
            "class": type(tokenizer).__name__,
            "template": tokenizer.chat_template,
            "special": tokenizer.special_tokens_map,
            "split_special_tokens": tokenizer.split_special_tokens,
            "versions": [tokenizers.__version__, transformers.__version__],
        }
    )


def _cuts_before(description: dict[str, Any]) -> set[str] | None:
    """Marks before which texts may be cut if a letter is there first, or None for no cuts at all.

    Where it is not None, texts may be cut before every space that follows something else, too.
    That holds for a byte-level BPE that splits words first and none of whose tokens, added ones
    included, joins what a cut would separate: no merge ever crosses it.
    """
    model = description.get("model", {})
    splitters = _parts(description.get("pre_tokenizer"), "pretokenizers")
    shaping = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if (
        model.get("type") != "BPE"
        or any(model.get(key) for key in shaping)
        or any(part["type"] != "NFC" for part in _parts(description["normalizer"], "normalizers"))
        or not {p["type"] for p in splitters} <= {"Split", "Digits", "ByteLevel"}
        or not any(p["type"] == "ByteLevel" for p in splitters)
        or any(p.get("add_prefix_space") for p in splitters)
    ):
        return None
    added = description["added_tokens"]
    if any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word")):
        return None
    spelt = _byte_alphabet()
    spaces = re.escape("".join(spelt[byte] for byte in WHITE))
    tokens = "\n".join([*model["vocab"], *(t["content"].replace(" ", spelt[SPACE]) for t in added)])
    if re.search(f"[^{spaces}\n]{spelt[SPACE]}", tokens):
        return None
    return PUNCTUATION - set(re.findall(r"(?<=[A-Za-z])[!-~]", tokens))


def _kind(byte: int, marks: set[str]) -> int:
    letter = byte < 128 and chr(byte).isalpha()
    return (
        IS_WHITE * (byte in WHITE)
        | IS_SPACE * (byte == SPACE)
        | IS_LETTER * letter
        | IS_MARK * (chr(byte) in marks)
    )


def _byte_alphabet() -> dict[int, str]:
    """The character by which byte-level tokenizers write each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def _parts(part: Any, inner: str) -> list[dict[str, Any]]:
    """A component of a tokenizer.json as a list, sequences of them unfolded."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [p for member in part[inner] for p in _parts(member, inner)]
    return [part]


def _description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json would hold, less what calls change; empty for a tokenizer in Python."""
    if not tokenizer.is_fast:
        return {}
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    return description | {"truncation": None, "padding": None}


def _functions(
    tokenizer: PreTrainedTokenizerBase, description: dict[str, Any], continuing: bool
) -> tuple[Callable, Callable]:
    """Functions of many texts to ids and of many ids to texts."""
    if not description:
        return (
            lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
            lambda ids: [tokenizer.decode(i, clean_up_tokenization_spaces=False) for i in ids],
        )
    backend = tokenizer.backend_tokenizer
    if continuing:
        _leave_out_first_space(description)
        backend = tokenizers.Tokenizer.from_str(json.dumps(description))

    def ids(texts: list[str]) -> list[list[int]]:
        backend.no_padding()  # what an earlier call of the tokenizer may have left behind
        backend.no_truncation()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        with _all_cores():
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def texts(ids: list[list[int]]) -> list[str]:
        with _all_cores():
            return backend.decode_batch(ids, skip_special_tokens=False)

    return ids, texts


def _leave_out_first_space(part: Any) -> None:
    """Change a tokenizer's description: no space of its own before a text, none cut off after."""
    if isinstance(part, list):
        part[:] = [p for p in part if not _is_first_space(p)]
        for member in part:
            _leave_out_first_space(member)
    elif isinstance(part, dict):
        if part.get("type") in ("Metaspace", "ByteLevel"):
            part |= {k: v for k, v in _NO_PREFIX.items() if k in part}
        for key in ("normalizer", "pre_tokenizer", "decoder"):
            if _is_first_space(part.get(key)):
                part[key] = None
        for key, member in part.items():
            if key not in ("model", "added_tokens"):
                _leave_out_first_space(member)


_NO_PREFIX = {"add_prefix_space": False, "prepend_scheme": "never"}


def _is_first_space(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    strips = part.get("type") == "Strip" and "content" in part and part.get("start") == 1
    return part.get("type") == "Prepend" or strips


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizer use its threads, which a program that forks has switched off."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
