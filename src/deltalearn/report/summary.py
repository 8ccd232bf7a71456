"""The numbers of a run: every arm and model with intervals, every arm against the base.

Scores are read from the result directories under scores/, as `deltalearn compare` reads them, and
each difference is the one that `compare` shows for the same two arms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.arms import Arm, Run, shared
from deltalearn.evaluate.matching import Matched, Settings, averages, match, weighted
from deltalearn.stats import seeds
from deltalearn.stats.bootstrap import DRAWS
from deltalearn.stats.paired import Difference, Paired, compare, compare_mean
from deltalearn.stats.sampling import Estimate, Sampling
from deltalearn.util.files import digest

FORMAT = 2
STUDENT = "student"
BASE = "base"
BY_SEEDS = (
    "95%, over items (within strata) and training seeds as random effects: Student's t with "
    "Satterthwaite's degrees of freedom; differences are paired by item"
)
BY_ITEMS = (
    "95%, over items (within strata) only: one training run each, so that the training seed is NOT "
    "covered; differences are paired by item: {methods}"
)
METHODS = {
    "score": "Tango's interval of two counts for scores of 0 or 1",
    "bootstrap": "percentile bootstrap of {draws:,} draws for other scores and averages",
    "t": "Student's t where items are clustered or few",
}


def load_manifest(run: Path) -> dict[str, Any]:
    """run.json of a run directory."""
    path = run / "run.json"
    if not path.is_file():
        raise UserError(f"{run}: not a run directory (no run.json)")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    # Stages of arms that the recipe no longer has are kept, for the day when it has them again.
    stages = manifest["stages"].items()
    return manifest | {"stages": {n: r for n, r in stages if r.get("state") != "left"}}


def summarize(run: Path) -> dict[str, Any]:
    """Summary of a run.

    Args:
        run: A run directory whose evaluate stage is finished, or whose recipe has none.

    Returns:
        One JSON value. `benchmarks`: what was measured, by name, averages of several first.
        `arms`: per arm each benchmark as {mean, lo, hi}; the same of the paired difference from
        base under `diff_vs_base`, each seed's difference under `per_seed`, and the first two per
        stratum under `by_task`. `teachers`: the weak models' own scores. Ends of an interval are
        None where nothing can be known of it. `intervals`: the method. `pairs`: counts. `overlap`:
        evaluated items among the training prompts, as in overlap.json; None if nobody looked.

    Raises:
        UserError: If scores that the recipe asks for are not there, or do not belong together.
    """
    manifest = load_manifest(run)
    recipe = manifest["recipe"]
    arms, models = _read(run, recipe)
    table = _Table.of([*models.values(), *arms.values()], _settings(recipe))
    places = {arm.name: i for i, arm in enumerate([*models.values(), *arms.values()])}
    base = places.get(f"models/{STUDENT}")
    entries: dict[str, dict[str, Any]] = {}
    for name in recipe["arms"]:
        if base is None:
            entries[name] = {}
        elif name == BASE:
            entries[name] = table.scores(base)
        else:
            entries[name] = table.arm(places[f"arms/{name}"], base)
    notes = [note for one in table.matched for note in one.notes]
    overlap = _overlap(run, manifest)
    return {
        "format": FORMAT,
        "name": manifest["name"],
        "items": table.items,
        "benchmarks": table.benchmarks(),
        "seeds": list(recipe["seeds"]),
        "intervals": _method(entries, table.settings),
        "notes": [*notes, *table.constants(), *_contaminated(overlap)],
        "overlap": overlap,
        "arms": entries,
        "teachers": {n: table.scores(places[m.name]) for n, m in models.items() if n != STUDENT},
        "pairs": {
            stage.removeprefix("pairs/"): record["counts"]
            for stage, record in manifest["stages"].items()
            if stage.startswith("pairs/")
        },
        "scores_digest": digest(table.plain(list(places))),
    }


def _overlap(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run found of evaluated items among its training prompts, if it looked."""
    path = run / "overlap.json"
    if "overlap" not in manifest["stages"] or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _contaminated(overlap: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each set of items that are among the training prompts."""
    sets = overlap["sets"].items() if overlap else ()
    return [
        f"{one['any']:,} of {one['items']:,} items of {name} are among the training prompts: "
        "their scores are no evidence"
        for name, one in sets
        if one["any"]
    ]


def _read(run: Path, recipe: Mapping[str, Any]) -> tuple[dict[str, Arm], dict[str, Arm]]:
    """The tuned arms and the models that were scored; none of either without an evaluate section.

    Weak models behind a server have no scores.
    """
    if not recipe.get("evaluate"):
        return {}, {}
    scores = run / "scores"
    here = [STUDENT, *(n for n, m in recipe["models"].items() if not m.get("server"))]
    models = {name: _arm(f"models/{name}", [scores / "models" / name]) for name in here}
    arms = {}
    for name in recipe["arms"]:
        if name != BASE:
            of_seeds = [scores / "arms" / name / f"seed-{seed}" for seed in recipe["seeds"]]
            arms[name] = _arm(f"arms/{name}", of_seeds)
    return arms, models


def _arm(name: str, directories: Sequence[Path]) -> Arm:
    if absent := [path for path in directories if not (path / "results.json").is_file()]:
        raise UserError(f"{absent[0]}: not there yet; run the recipe's evaluate stage first")
    return Arm(name, tuple(map(Run.read, directories)))


def _settings(recipe: Mapping[str, Any]) -> Settings:
    return Settings(draws=(recipe.get("evaluate") or {}).get("bootstrap") or DRAWS)


def _method(entries: Mapping[str, Any], settings: Settings) -> str:
    """In words, how the intervals of differences were made."""
    found = [own["diff_vs_base"].values() for own in entries.values() if "diff_vs_base" in own]
    methods = {entry["by"] for own in found for entry in own if isinstance(entry.get("by"), str)}
    if any(len(s) > 1 for own in entries.values() for s in own.get("per_seed", {}).values()):
        return BY_SEEDS
    told = [text.format(draws=settings.draws) for by, text in METHODS.items() if by in methods]
    return BY_ITEMS.format(methods="; ".join(told) or "none could be computed")


@dataclass(frozen=True)
class _Table:
    """All benchmarks with the scores of all arms, and the averages of several of them."""

    matched: list[Matched]
    means: dict[str, tuple[str, list[Matched]]]
    settings: Settings

    @classmethod
    def of(cls, arms: Sequence[Arm], settings: Settings) -> _Table:
        matched = [match(name, arms, settings) for name in (shared(arms) if arms else [])]
        names = ("average", "average_without_alpaca_eval")
        return cls(matched, dict(zip(names, averages(matched), strict=False)), settings)

    @property
    def items(self) -> int:
        """Questions in all; several metrics of one set of questions count once."""
        sets = {}
        for one in self.matched:
            sets[one.name.rpartition(".")[0] if _is_own(one) else one.name] = len(one.ids)
        return sum(sets.values())

    def benchmarks(self) -> dict[str, dict[str, Any]]:
        """What is known of each; averages come first."""
        found: dict[str, dict[str, Any]] = {
            name: {"title": label, "kind": "average", "bounded": True, "of": [m.name for m in of]}
            for name, (label, of) in self.means.items()
        }
        sets = {m.name.rpartition(".")[0] if _is_own(m) else None for m in self.matched}
        for one in self.matched:
            kept = ("kind", "metric", "unit", "aggregation", "subset", "full_n", "judge")
            known: Mapping[str, Any] = one.entry
            entry = {key: known[key] for key in kept if key in known}
            bounded = one.entry.get("bounded", True)
            # One set of questions needs no name beside its metrics.
            title = _metric(one.name) if len(sets) == 1 and _is_own(one) else one.title
            entry |= {"title": title, "bounded": bounded, "n": len(one.ids)}
            strata = one.sampling.strata if one.macro else []
            found[one.name] = {**entry, "constant": one.constant, "tasks": strata}
        return found

    def constants(self) -> list[str]:
        """A note on each benchmark that tells nothing."""
        return [
            f"{m.title}: constant: tells nothing, every model has {m.constant:g} on every item"
            for m in self.matched
            if m.constant is not None
        ]

    def scores(self, at: int) -> dict[str, Any]:
        """Each benchmark of one arm."""
        found = {
            name: _score([(w, p.a, p.sampling) for w, p in weighted(of, at, at)])
            for name, (_, of) in self.means.items()
        }
        for one in self.matched:
            found[one.name] = _score([(1.0, one.scores[at], one.sampling)])
        by_task = {
            one.name: {
                task: _score([(1.0, pair.a, pair.sampling)]) for task, pair in _tasks(one, at, at)
            }
            for one in self.matched
        }
        return {**found, "by_task": {name: own for name, own in by_task.items() if own}}

    def arm(self, at: int, base: int) -> dict[str, Any]:
        """Scores of one arm, and its differences from the arm at `base`."""
        parts = {name: weighted(of, at, base) for name, (_, of) in self.means.items()}
        found = {name: _entry(compare_mean(own)) for name, own in parts.items()}
        for one in self.matched:
            found[one.name] = _entry(compare(one.pair(at, base)))
            parts[one.name] = [(1.0, one.pair(at, base))]
        by_task = {
            one.name: {task: _entry(compare(pair)) for task, pair in _tasks(one, at, base)}
            for one in self.matched
        }
        by_task = {name: own for name, own in by_task.items() if own}
        per_seed = {
            name: np.sum(
                [w * p.sampling.mean(p.a - p.b.mean(axis=0)) for w, p in own], axis=0
            ).tolist()
            for name, own in parts.items()
        }
        difference = {**found, "by_task": by_task}
        return {**self.scores(at), "diff_vs_base": difference, "per_seed": per_seed}

    def plain(self, arms: Sequence[str]) -> Any:
        """All scores by arm and benchmark."""
        return {
            arm: {one.name: one.scores[i].tolist() for one in self.matched}
            for i, arm in enumerate(arms)
        }


def _is_own(one: Matched) -> bool:
    """Whether it is a metric, `<set>.<metric>`, of questions of one's own."""
    return one.entry.get("kind") == "reference"


def _metric(name: str) -> str:
    metric = name.rpartition(".")[2]
    return {"loglik": "log-likelihood"}.get(metric, metric.replace("_", " "))


def _tasks(one: Matched, a: int, b: int) -> list[tuple[object, Paired]]:
    """A macro average's strata by themselves; none if there is but one."""
    if not one.macro or len(one.sampling.strata) < 2:
        return []
    strata, how = np.array(one.strata), one.settings
    found = []
    for task in one.sampling.strata:
        at = np.flatnonzero(strata == task)
        clusters = [one.clusters[i] for i in at] if one.sampling.clustered else None
        sides = one.scores[a][:, at], one.scores[b][:, at]
        own = Sampling(len(at), clusters=clusters)
        found.append((task, Paired(f"{one.name} {task}", *sides, own, how.draws, how.seed)))
    return found


def _score(parts: Sequence[tuple[float, np.ndarray, Sampling]]) -> dict[str, Any]:
    """The weighted mean of scores of (runs, n) each."""
    runs = np.concatenate([own for _, own, _ in parts], axis=1)
    sampling = parts[0][2]
    if len(parts) > 1:
        sampling = Sampling.together([(own, weight) for weight, _, own in parts])
    return _interval(seeds.score(runs, sampling))


def _interval(estimate: Estimate) -> dict[str, Any]:
    if not np.isfinite(estimate.se):
        return {"mean": float(estimate.value), "lo": None, "hi": None}
    low, high = map(float, estimate.interval())
    return {"mean": float(estimate.value), "lo": low, "hi": high}


def _entry(one: Difference) -> dict[str, Any]:
    test = one.test
    return {
        "mean": one.difference,
        "lo": test.lo,
        "hi": test.hi,
        "by": test.interval_by,
        "p": test.p,
        "p_by": test.p_by,
    }
