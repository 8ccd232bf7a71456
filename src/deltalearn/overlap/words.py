"""Texts as numbers of words, so that runs of words are compared at the speed of numpy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A word is letters and digits, or one sign of a script that is written without spaces.
WORD = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
SEED = 20_411  # of the factors by which runs are hashed


def words(text: str) -> list[str]:
    """The words of a text: without case, punctuation, white space and forms of Unicode.

    Args:
        text: Any text.

    Returns:
        Its words, in order; as good as the text itself where texts are compared whole.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Words:
    """Several texts as numbers.

    Attributes:
        ids: (N,) uint64, a number for each word, one text after the other; equal words are equal.
        ends: (texts,) int64, where each text ends.
    """

    ids: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> Words:
        """Number the words of texts."""
        numbers = [hash(word) for text in texts for word in text]
        return cls(
            np.array(numbers, dtype=np.int64).view(np.uint64),
            np.cumsum([len(text) for text in texts], dtype=np.int64),
        )

    def runs(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find every run of `size` words within a text.

        Args:
            size: Words in a run.

        Returns:
            (hashes, texts, places): of each run a uint64, the number of its text, and its first
            word's place in the text.
        """
        total = max(len(self.ids) - size + 1, 0)
        factors = np.random.default_rng(SEED).integers(1, 2**63, size, dtype=np.uint64) | 1
        hashes = np.zeros(total, dtype=np.uint64)
        for at, factor in enumerate(factors):
            hashes += self.ids[at : at + total] * factor
        starts = np.concatenate([[0], self.ends])[:-1]
        runs = np.maximum(self.ends - starts - size + 1, 0)  # of each text
        texts = np.repeat(np.arange(len(runs)), runs)
        places = np.arange(len(texts)) - np.repeat(np.cumsum(runs) - runs, runs)
        return hashes[starts[texts] + places], texts, places
