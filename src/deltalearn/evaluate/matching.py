"""The same items in the same order for every run, or an error that says which are not.

Also which benchmarks count in an average, and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.length_control import ScoredPairs, pseudo_scores
from deltalearn.evaluate.arms import Arm, Items, Run
from deltalearn.evaluate.entries import Entry
from deltalearn.evaluate.tulu3.suite import BY_NAME, ELEVEN, MMLU
from deltalearn.stats.bootstrap import DRAWS
from deltalearn.stats.joint import joint
from deltalearn.stats.paired import Paired
from deltalearn.stats.sampling import Sampling
from deltalearn.util.text_format import one_line

CLOSE = 1e-5  # between a recorded score and that of the items, beyond which they do not belong
JUDGED = "alpaca_eval"
FACTS = {"stratum": "stratum", "cluster": "cluster", "gold": "gold answer"}
FAMILY = ("humaneval", "humanevalplus")  # two benchmarks on the same problems


def title(name: str, entry: Entry | None = None) -> str:
    """Name a benchmark as tables do.

    Args:
        name: In results.
        entry: Of results.json, which may say.
    """
    if name in BY_NAME:
        return BY_NAME[name].title
    return one_line(str((entry and entry.get("title")) or name), 40)


@dataclass(frozen=True)
class Settings:
    """Settings of the computation of differences.

    Attributes:
        draws, seed: Of the bootstrap.
        clustered: Whether items of a cluster (questions about one passage) are taken as drawn
            together.
        mmlu: The benchmark that counts as MMLU in an average; default: the first of `MMLU` that is
            there.
    """

    draws: int = DRAWS
    seed: int = 0
    clustered: bool = True
    mmlu: str | None = None


@dataclass(frozen=True)
class Matched:
    """One benchmark: (runs, n) scores of each arm on the same items, and what all runs share.

    entry: of results.json, of the first run.
    """

    name: str
    entry: Entry
    ids: list[str]
    strata: list[str]
    clusters: list[str]
    scores: tuple[np.ndarray, ...]
    settings: Settings
    notes: tuple[str, ...] = ()
    _pairs: dict[tuple[int, int], Paired] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """Its name in tables."""
        return title(self.name, self.entry)

    @property
    def macro(self) -> bool:
        """True if the score is the mean of the strata's means."""
        return self.entry.get("aggregation") == "macro"

    @cached_property
    def sampling(self) -> Sampling:
        """The way its items were drawn."""
        clusters = self.clusters if self.settings.clustered and any(self.clusters) else None
        strata = self.strata if self.macro else None
        return Sampling(len(self.ids), strata=strata, clusters=clusters)

    @property
    def constant(self) -> float | None:
        """The one score of every run on every item, which tells nothing; None if they vary."""
        runs = np.concatenate(self.scores)
        return float(runs.flat[0]) if (runs == runs.flat[0]).all() else None

    def pair(self, a: int = 0, b: int = 1) -> Paired:
        """The arms with these places against each other."""
        if (a, b) not in self._pairs:
            how, of_a, of_b = self.settings, self.scores[a], self.scores[b]
            pair = Paired(self.name, of_a, of_b, self.sampling, how.draws, how.seed)
            self._pairs[a, b] = pair
        return self._pairs[a, b]


def match(name: str, arms: Sequence[Arm], settings: Settings | None = None) -> Matched:
    """Align a benchmark's items by id, over all runs of all arms.

    Args:
        name: Of the benchmark, which every run has scored.
        arms: Whose scores to align; the first run's items and entry come first.
        settings: How differences will be computed.

    Raises:
        UserError: If runs differ in items or their gold answers, or if a run's items do not have
            the score that its results.json records.
    """
    runs = [run for arm in arms for run in arm.runs]
    judged = name == JUDGED
    items = [run.items(name, outputs=judged) for run in runs]
    ids, notes = _shared(name, runs, items)
    for run, own in zip(runs[1:], items[1:], strict=True):
        _same_facts(name, ids, (runs[0], items[0]), (run, own))
    facts = [items[0][i] for i in ids]
    scores = tuple(np.empty((len(arm.runs), len(ids))) for arm in arms)
    entry = runs[0].benchmarks[name]
    if judged and _is_controlled(entry):
        notes.append(
            f"{title(name)}: errors of the length-controlled win rate are those of its minimal "
            "form, refitted without each item"
        )
    strata, clusters = ([fact[key] or "" for fact in facts] for key in ("stratum", "cluster"))
    matched = Matched(
        name, entry, ids, strata, clusters, scores, settings or Settings(), tuple(notes)
    )
    whole = len(ids) == len(items[0])
    sampling = matched.sampling
    rows = [row for own in scores for row in own]
    for row, run, own in zip(rows, runs, items, strict=True):
        row[:] = [own[i]["score"] for i in ids]
        recorded = run.benchmarks[name]["score"]
        assert recorded is not None  # else it would not be there
        if judged and _is_controlled(run.benchmarks[name]):
            outputs, references = [own[i]["output"] for i in ids], [fact["gold"] for fact in facts]
            pairs = ScoredPairs.of(row.tolist(), outputs, references)
            row[:] = pseudo_scores(pairs, recorded if whole else None)
        elif whole and abs(float(sampling.mean(row)) - recorded) > CLOSE:
            raise UserError(
                f"{run.directory}: {matched.title} is {recorded:.6f} in results.json and "
                f"{float(sampling.mean(row)):.6f} by its items; evaluate it again"
            )
    return matched


def averages(matched: Sequence[Matched]) -> list[tuple[str, list[Matched]]]:
    """(label, benchmarks) of each average: of all that count, and of those without AlpacaEval.

    One of the two MMLU tasks counts. Questions of one's own do not, as their metrics measure the
    same answers several times, nor do scores without bounds, which have other units.
    """
    variant = counted_mmlu(matched)
    counted = [m for m in matched if m.name not in MMLU or m.name == variant]
    counted = [
        m for m in counted if m.entry.get("bounded", True) and m.entry.get("kind") != "reference"
    ]
    others = [m for m in counted if m.name != JUDGED]
    found = [(_label(counted), counted)] if len(counted) > 1 else []
    if 1 < len(others) < len(counted):
        found.append((f"{_label(others)} without AlpacaEval", others))
    return found


def counted_mmlu(matched: Sequence[Matched]) -> str | None:
    """Which of the MMLU tasks counts in an average; None where there is none."""
    names = {m.name for m in matched}
    wanted = matched[0].settings.mmlu if matched else None
    return wanted or next((name for name in MMLU if name in names), None)


def weighted(parts: Sequence[Matched], a: int = 0, b: int = 1) -> list[tuple[float, Paired]]:
    """The plain mean of several benchmarks as weighted pairs; those on the same problems as one.

    Args:
        parts: The benchmarks, all with the same arms.
        a, b: The places of the two arms among them.
    """
    family = [m for m in parts if m.name in FAMILY]
    family = family if len(family) > 1 else []
    found = [(1 / len(parts), m.pair(a, b)) for m in parts if m not in family]
    if family:
        (ids, of_a), (_, of_b) = (joint([(m.ids, m.scores[k]) for m in family]) for k in (a, b))
        how = parts[0].settings
        pair = Paired(" ".join(FAMILY), of_a, of_b, Sampling(len(ids)), how.draws, how.seed)
        found.append((len(family) / len(parts), pair))
    return found


def _label(parts: Sequence[Matched]) -> str:
    names = {m.name for m in parts}
    whole = set(ELEVEN) - {JUDGED} <= names and any(name in MMLU for name in names)
    return f"average of {'the ' if whole else ''}{len(names)}"


def _is_controlled(entry: Entry) -> bool:
    return "length-controlled" in str(entry.get("metric"))


def _shared(name: str, runs: Sequence[Run], items: Sequence[Items]) -> tuple[list[str], list[str]]:
    """(ids in the order of the first run, notes); UserError if a run lacks an item.

    Replies of a judge that could not be read leave no item; so many may be missing on a side.
    """
    everything = {i: None for own in items for i in own}
    kept = dict.fromkeys(i for i in everything if all(i in own for own in items))
    if len(kept) == len(everything):
        return list(kept), []
    for run, own in zip(runs, items, strict=True):
        missing = [i for i in everything if i not in own]
        if len(missing) > _unread(run.benchmarks[name]):
            raise UserError(
                f"{title(name)}: {len(missing):,} items are missing in {run.directory}, the first "
                f"{one_line(missing[0], 40)!r}; only the same items can be compared, evaluate "
                "both with the same data and limit"
            )
    left = len(everything) - len(kept)
    if not kept:
        raise UserError(f"{title(name)}: no item is scored in all of {len(runs)} runs")
    return list(kept), [
        f"{title(name)}: {left} items without a verdict of the judge on a side count for none; "
        "scores are of the others"
    ]


def _unread(entry: Entry) -> int:
    """Replies of the judge that could not be read, as `alpaca.result.summary` counts them."""
    details = entry.get("alpaca_eval")
    faults = details.get("comparisons", {}).get("faults", {}) if isinstance(details, dict) else {}
    return sum(faults.values())


def _same_facts(
    name: str, ids: Sequence[str], first: tuple[Run, Items], other: tuple[Run, Items]
) -> None:
    for item in ids:
        for fact, what in FACTS.items():
            if first[1][item][fact] != other[1][item][fact]:
                raise UserError(
                    f"{title(name)}: the item {one_line(item, 40)!r} has another {what} in "
                    f"{other[0].directory} than in {first[0].directory}: the data are not the "
                    "same; evaluate both on one copy"
                )
