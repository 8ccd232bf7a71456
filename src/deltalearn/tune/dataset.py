"""Pairs as ids: one flat array of tokens, in memory or mapped from a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deltalearn.errors import UserError
from deltalearn.util.files import write_json

VERSION = 1
TOKENS, OFFSETS, META = "tokens.npy", "offsets.npy", "meta.json"


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Ids of one pair, each (length,) int32. An answer has the end-of-turn id if it ended."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


class Examples(Sequence[Example]):
    """Pairs in a fixed order; `[i]` is a view of one of them.

    prompt_lengths, chosen_lengths, rejected_lengths: tokens, each (pairs,) int32; answers count
    their end-of-turn id.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        """Use arrays as they are, without a copy.

        Args:
            tokens: (N,) int32.
            offsets: (pairs, 4) int64, start of prompt, chosen and rejected, and end, of each pair.
        """
        self._tokens = np.asarray(tokens)  # a plain view of a mapped file: cheaper to slice
        self._offsets = offsets
        lengths = np.diff(offsets, axis=1).astype(np.int32)
        self.prompt_lengths, self.chosen_lengths, self.rejected_lengths = lengths.T

    @classmethod
    def of(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> Examples:
        """Examples in memory of (prompt, chosen, rejected) ids."""
        collector = Collector()
        collector.add([np.asarray(ids, dtype=np.int32) for pair in pairs for ids in pair])
        return collector.finish()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        prompt, chosen, rejected, end = self._offsets[index].tolist()
        tokens = self._tokens
        return Example(tokens[prompt:chosen], tokens[chosen:rejected], tokens[rejected:end])

    def select(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indices`, in that order; tokens are shared."""
        return Examples(self._tokens, self._offsets[np.asarray(indices, dtype=np.int64)])

    @cached_property
    def digest(self) -> str:
        """Identity of the ids, their split into prompts and answers, and their order."""
        lengths = np.stack([self.prompt_lengths, self.chosen_lengths, self.rejected_lengths], 1)
        found = hashlib.sha256(lengths.astype("<i4").tobytes())
        for start, end in self._runs():
            found.update(self._tokens[start:end].astype("<i4", copy=False).data)
        return found.hexdigest()

    @cached_property
    def largest_id(self) -> int:
        """The largest token id; -1 without any."""
        return max((int(self._tokens[a:b].max(initial=-1)) for a, b in self._runs()), default=-1)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """The stretches of tokens that the examples cover, neighbours joined."""
        if not len(self):
            return
        starts, ends = self._offsets[:, 0], self._offsets[:, 3]
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        firsts, lasts = np.append(0, breaks), np.append(breaks, len(self)) - 1
        yield from zip(starts[firsts].tolist(), ends[lasts].tolist(), strict=True)

    def save(self, directory: Path, about: Mapping[str, Any] | None = None) -> Examples:
        """Write a folder, complete or not at all.

        Args:
            directory: Replaced if it exists.
            about: JSON values to keep beside them, for `read_about`.

        Returns:
            The same examples, mapped from the folder.
        """
        with Collector(directory) as collector:
            for example in self:
                collector.add([example.prompt, example.chosen, example.rejected])
            return collector.finish(about)

    @classmethod
    def open(cls, directory: Path) -> Examples:
        """Map the examples of a folder. UserError unless it is whole, to the last bit."""
        try:
            meta = json.loads((directory / META).read_text(encoding="utf-8"))
            tokens = np.load(directory / TOKENS, mmap_mode="r", allow_pickle=False)
            offsets = np.load(directory / OFFSETS, allow_pickle=False)
            if meta["version"] != VERSION:
                raise ValueError(f"version {meta['version']}, this program reads {VERSION}")
            if tokens.dtype != np.int32 or offsets.dtype != np.int64 or offsets.shape[1:] != (4,):
                raise ValueError("arrays of another kind")
            if offsets.size and (np.diff(offsets.ravel()) < 0).any() | (
                offsets[-1, 3] > len(tokens)
            ):
                raise ValueError("offsets outside the tokens")
            examples = cls(tokens, offsets)
            if examples.digest != meta["digest"]:
                raise ValueError("the content is not what was written")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(
                f"{directory}: no whole set of prepared examples ({error}); delete the folder to "
                "have it made again"
            ) from error
        return examples


def read_about(directory: Path) -> Mapping[str, Any]:
    """Read the values that `save` was given to keep; empty if there is nothing readable."""
    try:
        about = json.loads((directory / META).read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


class Collector:
    """Collects examples in memory, or in a folder that is there complete or not at all.

    A folder is written beside its final place and moved there by `finish`.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._lengths: list[int] = []
        self._parts: list[np.ndarray] = []
        if directory is not None:
            self._temporary = directory.with_name(f".{directory.name}.tmp")
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
            self._file = (self._temporary / TOKENS).open("wb")
            self._write_header()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory is not None:
            self._file.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, parts: Sequence[np.ndarray]) -> None:
        """parts: int32 ids of prompt, chosen and rejected of a pair, then of the next, ..."""
        self._lengths += map(len, parts)
        tokens = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
        if self._directory is None:
            self._parts.append(tokens)
        else:
            self._file.write(tokens.astype("<i4", copy=False).data)

    def finish(self, about: Mapping[str, Any] | None = None) -> Examples:
        """The examples; with a folder, written there, mapped, with `about` beside them."""
        offsets = _offsets(self._lengths)
        if self._directory is None:
            tokens = np.concatenate([np.zeros(0, dtype=np.int32), *self._parts])
            tokens.flags.writeable = False
            return Examples(tokens, offsets)
        self._file.seek(0)
        self._write_header()
        self._file.close()
        np.save(self._temporary / OFFSETS, offsets, allow_pickle=False)
        tokens = np.load(self._temporary / TOKENS, mmap_mode="r", allow_pickle=False)
        examples = Examples(tokens, offsets)
        meta = {"version": VERSION, "digest": examples.digest, "about": dict(about or {})}
        write_json(self._temporary / META, meta)
        shutil.rmtree(self._directory, ignore_errors=True)
        os.rename(self._temporary, self._directory)
        return examples

    def _write_header(self) -> None:
        """The header of a one-dimensional .npy; numpy keeps its size the same for any length."""
        header = {"descr": "<i4", "fortran_order": False, "shape": (sum(self._lengths),)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    """(pairs, 4) int64 starts and end of lengths of prompt, chosen, rejected, prompt, ..."""
    ends = np.cumsum(np.array(lengths, dtype=np.int64)).reshape(-1, 3)
    starts = np.append(0, ends[:-1, 2])[: len(ends)]
    return np.column_stack([starts, ends])
