"""Result directories read back: an evaluated model, and the arms that a few of them make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.errors import UserError
from deltalearn.evaluate.entries import Entry
from deltalearn.evaluate.harness.results import items_file, read_results
from deltalearn.util.text_format import one_line

COLUMNS = ("id", "stratum", "cluster", "score", "gold")
NAME_LENGTH = 60


# Rows of one benchmark of one run by their ids: stratum, cluster, gold, which must be the same in
# every run, and score, in [0, 1] unless the benchmark says that its scores are not bounded; the
# output where it was asked for.
Items = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One evaluated model: a directory and its results.json."""

    directory: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Run:
        """The run of a result directory. UserError if it is none."""
        return cls(directory, read_results(directory))

    @property
    def name(self) -> str:
        """The model's name on one line, nothing invisible in it."""
        return one_line(str(self._model.get("name") or self.directory.name), NAME_LENGTH)

    @property
    def arm(self) -> str | None:
        """`run/arm` if it is one seed of an arm of a run: what all its seeds are called."""
        parts = self._model.get("run"), self._model.get("arm")
        return one_line("/".join(map(str, parts)), NAME_LENGTH) if all(parts) else None

    @property
    def identity(self) -> str | None:
        """Fingerprint of the weights; None for what is known by name only."""
        identity = self._model.get("identity")
        served = not isinstance(identity, str) or identity.startswith("served:")
        return None if served else identity

    @property
    def _model(self) -> dict[str, Any]:
        model = self.results.get("model")
        return model if isinstance(model, dict) else {}

    @cached_property
    def benchmarks(self) -> dict[str, Entry]:
        """Entries of results.json that have a score."""
        found = self.results.get("benchmarks")
        if not isinstance(found, dict) or not all(isinstance(e, dict) for e in found.values()):
            raise UserError(f"{self.directory / 'results.json'}: no benchmarks in it")
        return {name: entry for name, entry in found.items() if entry.get("score") is not None}

    def items(self, benchmark: str, *, outputs: bool = False) -> Items:
        """The items of a benchmark.

        Args:
            benchmark: Its name in results.json.
            outputs: Whether to read the answers too.

        Raises:
            UserError: If the file is not what results.json speaks of.
        """
        path = items_file(self.directory, benchmark)
        again = f"evaluate {benchmark} again"
        columns = [*COLUMNS, *(["output"] if outputs else [])]
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read ({error}); {again}") from error
        if missing := [name for name in columns if name not in table.column_names]:
            raise UserError(f"{path}: no column {missing[0]!r}; {again}")
        rows = table.to_pylist()
        found = {row["id"]: row for row in rows}
        if len(found) != len(rows):
            ((twice, _),) = Counter(row["id"] for row in rows).most_common(1)
            raise UserError(f"{path}: the item {one_line(str(twice), 40)!r} is there twice")
        scores = np.array([row["score"] for row in rows], dtype=float)
        entry = self.benchmarks[benchmark]
        if len(rows) != entry.get("n"):
            raise UserError(
                f"{path}: {len(rows):,} items, results.json speaks of {entry.get('n')}; {again}"
            )
        if entry.get("bounded", True) and not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(f"{path}: scores must be in [0, 1]; {again}")
        if not rows or not np.isfinite(scores).all():
            raise UserError(f"{path}: scores must be numbers; {again}")
        return found


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a run for each training seed."""

    name: str
    runs: tuple[Run, ...]


def shared(arms: Sequence[Arm]) -> list[str]:
    """Benchmarks with a score in every run, in the order of the first run."""
    first, *others = (run for arm in arms for run in arm.runs)
    return [name for name in first.benchmarks if all(name in run.benchmarks for run in others)]
