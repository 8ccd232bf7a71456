"""The numbers of a run: every arm and model with intervals, every arm against the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.results import read_items
from deltalearn.evaluate.reference.stats import Bootstrap, Draws
from deltalearn.util.files import digest

STUDENT = "student"
QUESTIONS = "questions"  # how the recipe's own are called


def load_manifest(run: Path) -> dict[str, Any]:
    """run.json of a run directory."""
    path = run / "run.json"
    if not path.is_file():
        raise UserError(f"{run}: not a run directory (no run.json)")
    return json.loads(path.read_text(encoding="utf-8"))


def summarize(run: Path) -> dict[str, Any]:
    """Summary of a run whose evaluate stage is finished.

    `arms`: per arm each metric as {mean, lo, hi} (95%, bootstrap over items and training seeds),
    the same paired against base under `diff_vs_base`, and both per task under `by_task`.
    `teachers`: the weak models' own scores, and what the pairs made of them look like.
    """
    manifest = load_manifest(run)
    recipe = manifest["recipe"]
    metrics = recipe["evaluate"]["metrics"]
    scores = _load_scores(run, recipe, metrics)
    bootstrap = Bootstrap(scores[STUDENT]["task"], recipe["evaluate"]["bootstrap"])
    resampled = bootstrap({(n, m): values[m] for n, values in scores.items() for m in metrics})
    draws = {name: {m: resampled[name, m] for m in metrics} for name in scores}
    base = draws[STUDENT]
    arms: dict[str, Any] = {}
    for arm in recipe["arms"]:
        own = base if arm == "base" else draws[f"arms/{arm}"]
        entry = _entry(own, bootstrap.tasks)
        if arm != "base":
            difference = {m: own[m] - base[m] for m in metrics}
            entry["diff_vs_base"] = _entry(difference, bootstrap.tasks)
            entry["per_seed"] = _per_seed(scores[f"arms/{arm}"], scores[STUDENT], metrics)
        arms[arm] = entry
    return {
        "name": manifest["name"],
        "items": len(scores[STUDENT]["task"]),
        "tasks": bootstrap.tasks,
        "metrics": list(metrics),
        "seeds": list(recipe["seeds"]),
        "intervals": "95%, percentile bootstrap over items (within tasks) and training seeds, "
        f"{recipe['evaluate']['bootstrap']:,} draws; differences are paired by item",
        "arms": arms,
        "teachers": {n: _entry(draws[n], bootstrap.tasks) for n in scored_models(recipe)},
        "pairs": {
            stage.removeprefix("pairs/"): record["counts"]
            for stage, record in manifest["stages"].items()
            if stage.startswith("pairs/")
        },
        "scores_digest": digest(_plain(scores, metrics)),
    }


def scored_models(recipe: dict[str, Any]) -> list[str]:
    """The weak models that could be scored: not those behind a server."""
    return [name for name, model in recipe["models"].items() if not model.get("server")]


def _entry(draws: dict[str, Draws], tasks: list[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {metric: d.average().as_dict() for metric, d in draws.items()}
    if len(tasks) > 1:
        entry["by_task"] = {
            metric: {t: i.as_dict() for t, i in zip(tasks, d.by_task(), strict=True)}
            for metric, d in draws.items()
        }
    return entry


def _per_seed(own: dict[str, Any], base: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """Macro-averaged difference against base of each training seed, in seed order."""
    tasks = np.asarray(base["task"])
    members = [tasks == task for task in dict.fromkeys(base["task"])]
    return {
        metric: [
            float(np.mean([(row - base[metric][0])[of_task].mean() for of_task in members]))
            for row in own[metric]
        ]
        for metric in metrics
    }


def _load_scores(run: Path, recipe: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """Per model or arm: metric -> (seeds, items) array, and the items' tasks."""
    sources = {name: [f"models/{name}"] for name in [STUDENT, *scored_models(recipe)]}
    for arm in recipe["arms"]:
        if arm != "base":
            sources[f"arms/{arm}"] = [f"arms/{arm}/seed-{seed}" for seed in recipe["seeds"]]
    loaded: dict[str, Any] = {}
    for name, places in sources.items():
        directories = [run / "scores" / place for place in places]
        if absent := [path for path in directories if not (path / "results.json").is_file()]:
            raise UserError(f"{absent[0]}: not there yet; run the recipe's evaluate stage first")
        tables = {m: [read_items(d, f"{QUESTIONS}.{m}") for d in directories] for m in metrics}
        loaded[name] = {"task": [row["stratum"] for row in tables[metrics[0]][0]]}
        loaded[name] |= {
            m: np.array([[row["score"] for row in rows] for rows in tables[m]]) for m in metrics
        }
    return loaded


def _plain(scores: dict[str, Any], metrics: list[str]) -> Any:
    return {name: {m: values[m].tolist() for m in metrics} for name, values in scores.items()}
