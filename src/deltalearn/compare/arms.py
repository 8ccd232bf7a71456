"""Result directories of `deltalearn evaluate`, and the arms that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.results import read_results
from deltalearn.util.wording import one_line

COLUMNS = ("id", "stratum", "cluster", "score", "gold")
NAME_LENGTH = 60


@dataclass(frozen=True)
class Items:
    """The items of one benchmark of one run, by name.

    facts: what must be the same in every run, (stratum, cluster, gold). score: in [0, 1]. outputs:
    the answers; empty unless asked for.
    """

    ids: list[str]
    facts: dict[str, tuple[str, str, str]]
    score: dict[str, float]
    outputs: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One evaluated model: a directory and its results.json."""

    directory: Path
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the model, on one line, nothing invisible in it."""
        return one_line(str(self._model.get("name") or self.directory.name), NAME_LENGTH)

    @property
    def identity(self) -> str | None:
        """Of the weights; None for what is known by name only."""
        identity = self._model.get("identity")
        served = not isinstance(identity, str) or identity.startswith("served:")
        return None if served else identity

    @property
    def _model(self) -> dict[str, Any]:
        model = self.results.get("model")
        return model if isinstance(model, dict) else {}

    @cached_property
    def benchmarks(self) -> dict[str, dict[str, Any]]:
        """Entries of results.json that have a score."""
        found = self.results.get("benchmarks")
        if not isinstance(found, dict) or not all(isinstance(e, dict) for e in found.values()):
            raise UserError(f"{self.directory / 'results.json'}: no benchmarks in it")
        return {name: entry for name, entry in found.items() if entry.get("score") is not None}

    def items(self, benchmark: str, *, outputs: bool = False) -> Items:
        """The items of a benchmark. UserError if the file is not what results.json speaks of."""
        path = self.directory / "items" / f"{benchmark}.parquet"
        columns = [*COLUMNS, *(["output"] if outputs else [])]
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); evaluate {benchmark} again"
            ) from error
        if missing := [name for name in columns if name not in table.column_names]:
            raise UserError(f"{path}: no column {missing[0]!r}; evaluate {benchmark} again")
        cells = {name: table.column(name).to_pylist() for name in columns}
        ids, scores = cells["id"], np.array(cells["score"], dtype=float)
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise UserError(f"{path}: the item {one_line(str(twice), 40)!r} is there twice")
        if len(ids) != self.benchmarks[benchmark].get("n"):
            raise UserError(
                f"{path}: {len(ids):,} items, results.json speaks of "
                f"{self.benchmarks[benchmark].get('n')}; evaluate {benchmark} again"
            )
        if not ids or not ((scores >= 0) & (scores <= 1)).all():
            raise UserError(f"{path}: scores must be in [0, 1]; evaluate {benchmark} again")
        facts = zip(cells["stratum"], cells["cluster"], cells["gold"], strict=True)
        return Items(
            ids,
            dict(zip(ids, facts, strict=True)),
            dict(zip(ids, scores.tolist(), strict=True)),
            dict(zip(ids, cells["output"], strict=True)) if outputs else {},
        )


@dataclass(frozen=True)
class Arm:
    """What stands on one side: a run for each training seed."""

    name: str
    runs: tuple[Run, ...]


def read_arms(a: Sequence[Path], b: Sequence[Path]) -> tuple[Arm, Arm]:
    """Both arms, with names that tell them apart. UserError if a directory has no results."""
    runs_a, runs_b = _runs(a), _runs(b)
    both = {run.directory.resolve() for run in runs_a} & {run.directory.resolve() for run in runs_b}
    if both:
        raise UserError(f"{both.pop()}: is in both arms; give two different evaluations")
    name_a, name_b = _name(runs_a, a), _name(runs_b, b)
    if name_a == name_b:
        name_a, name_b = _tails(a[0].resolve(), b[0].resolve())
    return Arm(name_a, runs_a), Arm(name_b, runs_b)


def _tails(a: Path, b: Path) -> tuple[str, str]:
    """The ends of two different paths, as long as it takes to tell them apart."""
    for count in range(1, max(len(a.parts), len(b.parts)) + 1):
        tails = ["/".join(path.parts[-count:]) for path in (a, b)]
        if tails[0] != tails[1]:
            break
    return one_line(tails[0], NAME_LENGTH), one_line(tails[1], NAME_LENGTH)


def _name(runs: Sequence[Run], given: Sequence[Path]) -> str:
    """What all runs are called, or else what the arm was given as."""
    names = {run.name for run in runs}
    if len(names) == 1:
        return names.pop()
    return one_line(given[0].resolve().name, NAME_LENGTH)


def _runs(given: Sequence[Path]) -> tuple[Run, ...]:
    directories = [directory for path in given for directory in _directories(path)]
    places = [directory.resolve() for directory in directories]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise UserError(f"{twice}: is twice in one arm; a run counts once")
    runs = tuple(Run(directory, read_results(directory)) for directory in directories)
    seen: dict[str, Run] = {}
    for run in runs:
        if run.identity is None:
            continue
        if run.identity in seen:
            raise UserError(
                f"{seen[run.identity].directory} and {run.directory} are evaluations of the same "
                "weights; an arm has one evaluation for each training seed, as a repeat tells "
                "nothing about training"
            )
        seen[run.identity] = run
    return runs


def _directories(path: Path) -> list[Path]:
    """`path` itself if it has results, else its sub-directories that have."""
    if (path / "results.json").is_file():
        return [path]
    found = sorted(file.parent for file in path.glob("*/results.json"))
    if not found:
        raise UserError(
            f"{path}: no results.json in it or in a directory of it; give what `deltalearn "
            "evaluate` wrote with --out, or a directory with one of those for each training seed"
        )
    return found
