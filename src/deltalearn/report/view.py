"""What every section of the page starts from: the run's arms, pairings and metrics, named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deltalearn.report.summary import BASE, STUDENT, load_manifest
from deltalearn.util.text_format import Measure, measure

FEW_BENCHMARKS = 3


@dataclass(frozen=True)
class Arm:
    """A tuned arm: what it was trained on, how, and its place among the colours.

    chosen, rejected: whose answers; empty where `outside` is where its pairs are from.
    """

    name: str
    method: str
    chosen: str
    rejected: str
    index: int
    max_grad_norm: float
    outside: str | None = None

    @property
    def supervised(self) -> bool:
        """True if it only imitates the chosen side."""
        return self.method == "sft"

    @property
    def trained_on(self) -> str:
        """Whose answers, in words."""
        if self.outside is not None:
            return self.outside
        if self.supervised:
            return f"answers of {self.chosen}"
        return f"{self.chosen} over {self.rejected}"


@dataclass(frozen=True)
class Pairing:
    """One table of pairs, and the arms trained on it."""

    chosen: str
    rejected: str
    path: Path
    counts: dict[str, Any]
    arms: tuple[str, ...]


@dataclass(frozen=True)
class RunView:
    """A run directory and its summary."""

    path: Path
    summary: dict[str, Any]
    manifest: dict[str, Any]

    @classmethod
    def load(cls, run: Path, summary: dict[str, Any]) -> RunView:
        """The view of a finished run."""
        return cls(run, summary, load_manifest(run))

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe of the run."""
        return self.manifest["recipe"]

    @property
    def stages(self) -> dict[str, Any]:
        """Stage records but the report's own: a page must not depend on when it was written."""
        return {n: r for n, r in self.manifest["stages"].items() if n != "report"}

    @cached_property
    def arms(self) -> list[Arm]:
        """Every tuned arm in recipe order."""
        found: list[Arm] = []
        for name, spec in self.recipe["arms"].items():
            if name != BASE:
                tune = {**self.recipe["tune"], **spec["tune"]}
                outside = (spec.get("pairs") or {}).get("source")
                sides = spec["chosen"] or "", spec["rejected"] or ""
                how = tune["max_grad_norm"], outside
                found.append(Arm(name, tune["method"], *sides, len(found), *how))
        return found

    @cached_property
    def pairings(self) -> list[Pairing]:
        """Every table of pairs in the order of first use."""
        made = [arm for arm in self.arms if arm.outside is None]
        sides = dict.fromkeys((arm.chosen, arm.rejected) for arm in made)
        return [
            Pairing(
                chosen,
                rejected,
                self.path / "pairs" / f"{chosen}_over_{rejected}.parquet",
                self.summary["pairs"][f"{chosen}_over_{rejected}"],
                tuple(a.name for a in self.arms if (a.chosen, a.rejected) == (chosen, rejected)),
            )
            for chosen, rejected in sides
        ]

    @cached_property
    def measures(self) -> list[Measure]:
        """The benchmarks that tell something; averages come first, the first is the headline's."""
        found = {k: e for k, e in self.summary["benchmarks"].items() if e.get("constant") is None}
        return [
            measure(key, entry, [self.difference(arm.name)[key] for arm in self.arms])
            for key, entry in found.items()
        ]

    @cached_property
    def main(self) -> list[Measure]:
        """Benchmarks shown at length: all if they are few, else averages or the first."""
        if len(self.measures) <= FEW_BENCHMARKS:
            return self.measures
        kinds = self.summary["benchmarks"]
        means = [m for m in self.measures if kinds[m.key]["kind"] == "average"]
        return means or self.measures[:1]

    @property
    def base(self) -> dict[str, Any]:
        """Scores of the untouched student."""
        return self.summary["arms"][BASE]

    def difference(self, arm: str) -> dict[str, Any]:
        """Differences of an arm from base, by metric."""
        return self.summary["arms"][arm]["diff_vs_base"]

    def is_scored(self, model: str) -> bool:
        """True if a generator has scores; one behind a server has none."""
        return model == STUDENT or model in self.summary["teachers"]

    def scores(self, model: str) -> dict[str, Any]:
        """A generator's own scores, by metric; the student's are base's."""
        return self.base if model == STUDENT else self.summary["teachers"][model]
