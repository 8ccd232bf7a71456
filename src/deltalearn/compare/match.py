"""The same items in the same order for every run, or an error that says which are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltalearn.compare.arms import Arm, Items, Run
from deltalearn.compare.comparable import JUDGED, title
from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.length_control import Judged, pseudo_scores
from deltalearn.stats.sampling import Sampling
from deltalearn.util.wording import one_line

CLOSE = 1e-5  # between a recorded score and that of the items, beyond which they do not belong


@dataclass(frozen=True)
class Matched:
    """One benchmark: (runs, n) scores of both arms on the same items, and what all runs share."""

    name: str
    entry: dict[str, Any]  # of results.json, of the first run
    ids: list[str]
    strata: list[str]
    clusters: list[str]
    a: np.ndarray
    b: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def macro(self) -> bool:
        """Whether the score is the mean of the strata's means."""
        return self.entry.get("aggregation") == "macro"

    def sampling(self, *, clustered: bool = True) -> Sampling:
        """How its items were drawn; without `clustered` as if each were drawn by itself."""
        clusters = self.clusters if clustered and any(self.clusters) else None
        return Sampling(
            len(self.ids), strata=self.strata if self.macro else None, clusters=clusters
        )


def match(name: str, a: Arm, b: Arm) -> Matched:
    """Align a benchmark's items by id. UserError if sides differ in items or their gold answers."""
    runs = [*a.runs, *b.runs]
    judged = name == JUDGED
    items = [run.items(name, outputs=judged) for run in runs]
    ids, notes = _shared(name, runs, items)
    for run, own in zip(runs[1:], items[1:], strict=True):
        _same_facts(name, ids, (runs[0], items[0]), (run, own))
    facts = [items[0].facts[i] for i in ids]
    matched = Matched(
        name,
        runs[0].benchmarks[name],
        ids,
        [stratum or "" for stratum, _, _ in facts],
        [cluster or "" for _, cluster, _ in facts],
        *(np.empty((len(arm.runs), len(ids))) for arm in (a, b)),
    )
    whole = len(ids) == len(items[0].ids)
    sampling = matched.sampling(clustered=False)
    for row, run, own in zip([*matched.a, *matched.b], runs, items, strict=True):
        row[:] = [own.score[i] for i in ids]
        recorded = float(run.benchmarks[name]["score"])
        if judged and _is_controlled(run.benchmarks[name]):
            references = [_reference(gold) for _, _, gold in facts]
            pairs = Judged.of(row.tolist(), [own.outputs[i] for i in ids], references)
            row[:] = pseudo_scores(pairs, recorded if whole else None)
        elif whole and abs(float(sampling.mean(row)) - recorded) > CLOSE:
            raise UserError(
                f"{run.directory}: {title(name)} is {recorded:.6f} in results.json and "
                f"{float(sampling.mean(row)):.6f} by its items; evaluate it again"
            )
    if judged and _is_controlled(matched.entry):
        notes.append(
            f"{title(name)}: errors of the length-controlled win rate are those of its minimal "
            "form, refitted without each item"
        )
    return Matched(**{**vars(matched), "notes": tuple(notes)})


def _is_controlled(entry: dict[str, Any]) -> bool:
    return "length-controlled" in str(entry.get("metric"))


def _reference(gold: str) -> str:
    """The reference's answer; it may stand in JSON beside the name of its writer."""
    if gold.startswith("{"):
        try:
            value = json.loads(gold)
        except ValueError:
            return gold
        if isinstance(value, dict) and set(value) == {"output", "generator"}:
            return str(value["output"])
    return gold


def _shared(name: str, runs: Sequence[Run], items: Sequence[Items]) -> tuple[list[str], list[str]]:
    """(ids in the order of the first run, notes); UserError if a run lacks an item.

    Replies of a judge that could not be read leave no item; so many may be missing on a side.
    """
    everything = {i: None for own in items for i in own.ids}
    kept = dict.fromkeys(i for i in everything if all(i in own.score for own in items))
    if len(kept) == len(everything):
        return list(kept), []
    for run, own in zip(runs, items, strict=True):
        missing = [i for i in everything if i not in own.score]
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


def _unread(entry: dict[str, Any]) -> int:
    """Replies of the judge that could not be read, as `alpaca.result.summary` counts them."""
    details = entry.get("alpaca_eval")
    faults = details.get("comparisons", {}).get("faults", {}) if isinstance(details, dict) else {}
    return sum(faults.values())


def _same_facts(
    name: str, ids: Sequence[str], first: tuple[Run, Items], other: tuple[Run, Items]
) -> None:
    for item in ids:
        here, there = first[1].facts[item], other[1].facts[item]
        if here != there:
            what = ("stratum", "cluster", "gold answer")
            differing = next(w for w, x, y in zip(what, here, there, strict=True) if x != y)
            raise UserError(
                f"{title(name)}: the item {one_line(item, 40)!r} has another {differing} in "
                f"{other[0].directory} than in {first[0].directory}: the data are not the same; "
                "evaluate both on one copy"
            )
