"""What a model has given for questions, kept while it is scored, so that a killed run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from deltalearn.evaluate.harness.cache import Answers
from deltalearn.util.files import digest

EVERY = 2.0  # seconds between two commits: what a kill may cost; short scorings commit nothing


class Kept:
    """Values by what was asked of which model.

    Those of a group are known together or not at all, so that what is asked again is asked in the
    same company: batches, and with them the last digit of a score, are those of a run in one go.
    Without a file nothing is kept: of a model in memory that is being trained.
    """

    def __init__(self, answers: Answers | None = None, identity: str = "") -> None:
        self._answers = answers
        self._identity = identity
        self._new: dict[str, Any] = {}
        self._saved = time.monotonic()

    def missing(
        self, kind: str, asked: Sequence[Any], groups: Sequence[Sequence[int]], into: dict[int, Any]
    ) -> Iterator[Sequence[int]]:
        """Yield the groups of places in `asked` that are not known; put into `into` what is.

        What is in `into` for a group when the next one is asked for is kept.
        """
        if self._answers is None:
            yield from groups
            return
        for group in groups:
            keys = [digest([self._identity, kind, asked[at]]) for at in group]
            known = self._answers.get(keys)
            if len(known) == len(set(keys)):
                into.update((at, known[key]) for at, key in zip(group, keys, strict=True))
                continue
            yield group
            self._new |= {key: into[at] for at, key in zip(group, keys, strict=True)}
            if time.monotonic() - self._saved > EVERY:
                self.save()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # broken off
            self.save()

    def save(self) -> None:
        """Commit what is new."""
        if self._answers is not None and self._new:
            self._answers.add(self._new)
            self._new = {}
        self._saved = time.monotonic()
