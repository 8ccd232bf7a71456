"""What a comparison holds: a row per benchmark, averages, and what was left out or is uncertain."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from deltalearn.evaluate.arms import Arm
from deltalearn.evaluate.entries import Entry
from deltalearn.stats import power
from deltalearn.stats.paired import Difference
from deltalearn.util.files import finite
from deltalearn.util.text_format import GAIN, LOSS, NONE, one_line

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Row(Difference):
    """Comparison of the arms on one benchmark.

    Attributes:
        strata: Number of them, if it is a macro average, else 1.
        clusters: Number, None if each item is drawn by itself.
        unpaired_se: Standard error if the arms had been scored on different items.
        discordant: (only A right, only B right) for 0/1 scores of single runs.
        constant: The one score of all runs on all items, if there is one.
        entry: How it was measured, from results.json.
    """

    name: str
    title: str
    n: int
    strata: int
    clusters: int | None
    unpaired_se: float
    correlation: float | None
    discordant: tuple[int, int] | None
    constant: float | None
    entry: Entry = field(repr=False)
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """Verdict as it stands among all benchmarks: by Holm's adjusted p."""
        if self.holm is None or self.holm >= power.ALPHA or self.difference == 0:
            return NONE
        return GAIN if self.difference > 0 else LOSS

    @property
    def bounded(self) -> bool:
        """True if its scores are in [0, 1]; their differences are told in points."""
        return bool(self.entry.get("bounded", True))

    @property
    def unit(self) -> str:
        """Name of the unit that differences are told in."""
        known = self.entry.get("unit")
        if self.bounded:
            return "points"
        return one_line(str(known), 40) if known else "in its own unit"

    @property
    def full(self) -> int | None:
        """Items of the published benchmark."""
        return self.entry.get("full_n")

    @property
    def subset(self) -> bool:
        """True if these are fewer items than the published benchmark has."""
        return bool(self.entry.get("subset")) or (self.full is not None and self.n < self.full)


@dataclass(frozen=True, kw_only=True)
class Average(Difference):
    """The plain mean of several benchmarks; n: their items."""

    label: str
    benchmarks: tuple[str, ...]
    n: int

    bounded: ClassVar = True  # only such scores are averaged
    unit: ClassVar = "points"


@dataclass(frozen=True)
class Comparison:
    """All of it; a and b are what the arms are called and where they came from."""

    a: Arm
    b: Arm
    rows: tuple[Row, ...]
    averages: tuple[Average, ...]
    notes: tuple[str, ...]
    draws: int
    seed: int

    @property
    def split(self) -> str:
        """test, dev or held-out; the same for all."""
        return str(self.a.runs[0].results.get("split"))

    def as_json(self, verdict: list[str]) -> dict[str, Any]:
        """One JSON value, without NaN. Scores and differences are fractions, A minus B."""
        value = {
            "format": FORMAT,
            "a": _arm(self.a),
            "b": _arm(self.b),
            "split": self.split,
            "level": 0.95,
            "alpha": power.ALPHA,
            "power": power.POWER,
            "bootstrap": {"draws": self.draws, "seed": self.seed},
            "verdict": verdict,
            "benchmarks": [_row(row) for row in self.rows],
            "averages": [{"label": one.label, **_difference(one)} for one in self.averages],
            "notes": list(self.notes),
        }
        return finite(value)


def _arm(arm: Arm) -> dict[str, Any]:
    runs = [
        {"directory": str(r.directory), "name": r.name, "identity": r.identity} for r in arm.runs
    ]
    return {"name": arm.name, "runs": runs}


MEASURED = (
    "metric", "aggregation", "shots", "chat", "max_tokens", "stops", "samples", "temperature",
    "judge",
)  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    value = {"name": row.name, "title": row.title, "n": row.n, **_difference(row)}
    del value["entry"]
    measured = {key: row.entry.get(key) for key in MEASURED}
    return {**value, "full_n": row.full, "subset": row.subset, "measured": measured}


def _difference(one: Difference) -> dict[str, Any]:
    return {**asdict(one), "verdict": one.verdict}
