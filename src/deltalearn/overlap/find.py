"""Which texts occur in which others: the rules by which contamination is reported.

- exact: the same words;
- 8-gram: more than half of the words stand in runs of eight that one other text has as well, as
  Tülu 3 decontaminates (arXiv 2411.15124, section 3.2);
- 13-gram: a run of thirteen words in common, as GPT-3 (arXiv 2005.14165, appendix C) and lm_eval's
  decontamination do.

A run that more than ten of the texts looked for have is the wording of a benchmark and not what one
of them says; it counts for nothing, as there. Texts of fewer than eight words are compared whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deltalearn.overlap.words import Words, words

EXACT, EIGHT, THIRTEEN = "exact", "8-gram", "13-gram"
KINDS = (EXACT, EIGHT, THIRTEEN)
SIZES = {EIGHT: 8, THIRTEEN: 13}
SHARE = 0.5  # of the words, that must be covered for an overlap by 8-grams
COMMON = 10  # texts with the same run; in more of them it is wording
BATCH = 5_000  # texts at a time
SIEVE = 24  # bits


@dataclass(frozen=True)
class Overlaps:
    """Where texts that were looked for occur.

    Attributes:
        found: Of each kind (number of the text looked for, number of the one it occurs in), (n, 2)
            int64, sorted, each once.
    """

    found: dict[str, np.ndarray]

    def pairs(self, kind: str | None = None) -> np.ndarray:
        """(n, 2) pairs of one kind, or of any."""
        parts = list(self.found.values()) if kind is None else [self.found[kind]]
        return _unique(np.concatenate(parts))

    def count(self, kind: str | None = None) -> int:
        """The number of texts looked for that occur, in this way or in any."""
        return len(np.unique(self.pairs(kind)[:, 0]))


class Sought:
    """Texts to be looked for in others, any number of times."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index them.

        Args:
            texts: Those that are looked for, the fewer of both: evaluation items, say.
        """
        self._texts = [words(text) for text in texts]
        self._whole: dict[tuple[str, ...], list[int]] = {}
        for number, text in enumerate(self._texts):
            if text:
                self._whole.setdefault(tuple(text), []).append(number)
        numbered = Words.of(self._texts)
        self._tables = {kind: _Table.of(numbered, size) for kind, size in SIZES.items()}

    def __len__(self) -> int:
        return len(self._texts)

    def among(self, texts: Iterable[str]) -> Overlaps:
        """Find where the texts looked for occur.

        Args:
            texts: Read once, in batches.

        Returns:
            The overlaps; texts are numbered from 0 on both sides.
        """
        found: dict[str, list[np.ndarray]] = {kind: [np.zeros((0, 2), np.int64)] for kind in KINDS}
        start, left = 0, iter(texts)
        while batch := list(islice(left, BATCH)):
            split = [words(text) for text in batch]
            whole = enumerate(self._whole.get(tuple(text), ()) for text in split)
            same = [(item, number) for number, items in whole for item in items]
            numbered = Words.of(split)
            pairs = {EXACT: np.array(same, dtype=np.int64).reshape(-1, 2)}
            pairs |= {kind: table.among(numbered, kind) for kind, table in self._tables.items()}
            for kind, one in pairs.items():
                found[kind].append(one + np.array([0, start]))
            start += len(batch)
        return Overlaps({kind: _unique(np.concatenate(parts)) for kind, parts in found.items()})


@dataclass(frozen=True)
class _Table:
    """The runs of the texts looked for, by hash.

    hashes: (runs,) distinct, sorted. starts: (runs + 1,) where each one's occurrences stand in
    `texts` and `places`. counted: of each text the words that stand in any run that counts.
    sieve: (2**SIEVE,) bool, whether a hash begins so, which spares looking up nearly all.
    """

    size: int
    hashes: np.ndarray
    starts: np.ndarray
    texts: np.ndarray
    places: np.ndarray
    counted: np.ndarray
    sieve: np.ndarray

    @classmethod
    def of(cls, numbered: Words, size: int) -> _Table:
        hashes, texts, places = numbered.runs(size)
        order = np.argsort(hashes, kind="stable")  # within one hash by text, then by place
        hashes, texts, places = hashes[order], texts[order], places[order]
        new = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
        group = np.cumsum(new) - 1
        first_in_text = new | np.append(True, texts[1:] != texts[:-1])[: len(hashes)]
        rare = np.bincount(group, first_in_text)[group] <= COMMON if len(group) else new
        hashes, texts, places = hashes[rare], texts[rare], places[rare]
        distinct, first = np.unique(hashes, return_index=True)
        counted = np.zeros(len(numbered.ends), dtype=np.int64)
        pairs, covered = _covered(np.column_stack([texts, np.zeros_like(texts), places]), size)
        counted[pairs[:, 0]] = covered
        sieve = np.zeros(2**SIEVE, dtype=bool)
        sieve[distinct >> np.uint64(64 - SIEVE)] = True
        return cls(size, distinct, np.append(first, len(hashes)), texts, places, counted, sieve)

    def among(self, numbered: Words, kind: str) -> np.ndarray:
        """(n, 2): which text looked for overlaps with which of the others by the rule of `kind`."""
        hashes, others, _ = numbered.runs(self.size)
        maybe = self.sieve[hashes >> np.uint64(64 - SIEVE)]
        hashes, others = hashes[maybe], others[maybe]
        if not len(hashes):
            return np.zeros((0, 2), np.int64)
        row = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        hit = self.hashes[row] == hashes
        met = _unique(np.column_stack([row[hit], others[hit]]))  # a run met twice is met once
        rows, others = met[:, 0], met[:, 1]
        times = self.starts[rows + 1] - self.starts[rows]
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        at = np.repeat(self.starts[rows], times) + within
        found = np.column_stack([self.texts[at], np.repeat(others, times), self.places[at]])
        pairs, covered = _covered(found, self.size)
        if kind == EIGHT:
            pairs = pairs[covered > SHARE * self.counted[pairs[:, 0]]]
        return pairs


def _covered(found: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Words that runs of `size` cover, of which several may overlap.

    found: (n, 3) text, other text, place of a run in the first. Returns the distinct pairs of
    texts, (k, 2), and the words of each.
    """
    found = _unique(found)
    if not len(found):
        return found[:, :2], np.zeros(0, dtype=np.int64)
    first = np.append(True, (found[1:, :2] != found[:-1, :2]).any(axis=1))
    more = np.append(size, np.minimum(size, np.diff(found[:, 2])))
    more[first] = size
    return found[first, :2], np.add.reduceat(more, np.flatnonzero(first))


def _unique(rows: np.ndarray) -> np.ndarray:
    """Rows in order, each once; faster than np.unique, which compares bytes."""
    rows = rows[np.lexsort(rows.T[::-1])]
    return rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))[: len(rows)]]
