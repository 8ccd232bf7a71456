"""What the scores say: the headline, the arms against base, and base and arms task by task."""

from __future__ import annotations

from typing import Any

from deltalearn.report.figures import Row, dot, rows_figure
from deltalearn.report.summary import STUDENT
from deltalearn.report.view import Arm, RunView
from deltalearn.util.svg import short_signed
from deltalearn.util.text_format import (
    GAIN,
    LOSS,
    NONE,
    Measure,
    count,
    duration,
    listing,
    one_line,
    plural,
    verdict,
)

STYLES = {GAIN: "up", LOSS: "down", NONE: "flat"}  # CSS classes
SIGNS = {GAIN: "▲", LOSS: "▼", NONE: "○"}  # a verdict is not told by colour alone
FULL_TINT = 0.45  # opacity of the heat cell with the largest difference


def headline(view: RunView) -> dict[str, Any]:
    """The verdict on the first benchmark, one sentence per arm, and the key tiles."""
    if not view.main or not view.arms:
        verdict = "No score tells the students apart" if view.arms else "No student was tuned"
        if view.arms and not view.summary["benchmarks"]:
            verdict = "Tuned, not scored: the recipe has no evaluate section"
        return {"verdict": verdict, "sentences": [], "tiles": _tiles(view, None)}
    first = view.main[0]
    return {
        "verdict": _verdict(view, first),
        "sentences": [_sentence(view, arm) for arm in view.arms],
        "tiles": _tiles(view, first),
    }


def _verdict(view: RunView, first: Measure) -> str:
    found = [verdict(view.difference(arm.name)[first.key]) for arm in view.arms]
    total, gains, losses = len(found), found.count(GAIN), found.count(LOSS)
    if total == 1:
        words = {
            GAIN: "The tuned student beats the untouched one",
            LOSS: "The tuned student falls below the untouched one",
            NONE: "The tuned student is not shown to differ from the untouched one",
        }[found[0]]
        return f"{words} in {first.named}"
    if gains == total:
        return f"All {total} tuned students beat the untouched one in {first.named}"
    tail = f"; {losses} fall{'s' if losses == 1 else ''} below it" if losses else ""
    if gains:
        verb = "beats" if gains == 1 else "beat"
        return f"{gains} of {total} tuned students {verb} the untouched one in {first.named}{tail}"
    return f"No tuned student is shown to beat the untouched one in {first.named}{tail}"


def _sentence(view: RunView, arm: Arm) -> dict[str, Any]:
    """What may be said of one arm: its difference in each metric, and what it learned from."""
    first, *others = view.main
    difference = view.difference(arm.name)
    return {
        "arm": arm,
        "how": _how(view, arm, first),
        "end": first.score(view.summary["arms"][arm.name][first.key]["mean"]),
        "metric": first.named,
        "claim": first.claim(difference[first.key]),
        "style": STYLES[verdict(difference[first.key])],
        "sign": SIGNS[verdict(difference[first.key])],
        "others": [
            f"{m.label[:1].upper()}{m.label[1:]}: {m.claim(difference[m.key])}" for m in others
        ],
    }


def _how(view: RunView, arm: Arm, first: Measure) -> str:
    def own(name: str) -> str:
        if name == STUDENT:
            return "the student itself"
        if not view.is_scored(name):
            return f"{one_line(name)} (behind a server, not scored)"
        return f"{one_line(name)} ({first.score(view.scores(name)[first.key]['mean'])})"

    if arm.outside is not None:
        learned = "Imitated the chosen answers" if arm.supervised else "Learned the preferences"
        return f"{learned} of {one_line(arm.outside)}"
    if arm.supervised:
        return f"Imitated answers of {own(arm.chosen)}{_relation(view, [arm.chosen], first)}"
    sides = [arm.chosen, arm.rejected]
    words = f"Learned to prefer answers of {own(arm.chosen)} to those of {own(arm.rejected)}"
    return words + _relation(view, sides, first)


def _relation(view: RunView, models: list[str], first: Measure) -> str:
    """Where the generators stand against the student; empty if he is one, or one has no scores."""
    if STUDENT in models or not all(map(view.is_scored, models)):
        return ""
    student = view.base[first.key]
    shown = first.score(student["mean"])
    scored = {name: view.scores(name)[first.key] for name in models}
    if any(entry["lo"] is None for entry in [student, *scored.values()]):
        return f"; the student has {shown}"
    places = {name: _place(entry, student) for name, entry in scored.items()}
    place, *others = dict.fromkeys(places.values())
    if others:
        told = listing(f"{one_line(name)} is {place} it" for name, place in places.items())
        return f"; against the student ({shown}), {told}"
    if len(places) > 1:
        place = f"neither {place.removeprefix('not ')}" if place == UNCLEAR else f"both {place}"
    return f", {place} the student ({shown})"


BELOW, ABOVE, UNCLEAR = "below", "above", "not clearly apart from"


def _place(entry: dict[str, Any], student: dict[str, Any]) -> str:
    """A model is below or above the student where their intervals do not meet."""
    if entry["hi"] < student["lo"]:
        return BELOW
    return ABOVE if entry["lo"] > student["hi"] else UNCLEAR


def _tiles(view: RunView, first: Measure | None) -> list[dict[str, str]]:
    pairs = count(sum(pairing.counts["pairs"] for pairing in view.pairings))
    asked = view.stages.get("prompts")  # none where all pairs are from outside
    made = f"{pairs} pairs in {plural(len(view.pairings), 'pairing')}"
    seconds = sum(record["seconds"] for record in view.stages.values())
    return [
        *(_score_tiles(view, first) if first else []),
        *([_tile("prompts", count(asked["counts"]["prompts"]), made)] if asked else []),
        *([_items_tile(view)] if view.summary["benchmarks"] else []),
        _tile("time, all stages", duration(seconds), f"on {_device(view)}"),
    ]


def _device(view: RunView) -> str:
    """What the run worked on, where that is known; what the recipe asked for, else."""
    return str(view.manifest["machine"].get("device") or view.recipe["device"])


def _score_tiles(view: RunView, first: Measure) -> list[dict[str, str]]:
    arms = view.summary["arms"]
    # What a person means by the best: a control that is ahead is no result of delta learning.
    tried = [arm for arm in view.arms if not is_control(view, arm, first)] or view.arms
    best = max(tried, key=lambda a: arms[a.name][first.key]["mean"])
    means = {name: own[first.key]["mean"] for name, own in view.summary["teachers"].items()}
    weak = max(means, key=means.__getitem__, default=None)
    difference = first.difference(view.difference(best.name)[first.key]["mean"])
    reached = first.score(arms[best.name][first.key]["mean"])
    return [
        _tile("student, untouched", first.score(view.base[first.key]["mean"]), first.label),
        *([_tile("best weak model", first.score(means[weak]), weak)] if weak else []),
        _tile(
            "tuned student" if len(tried) == 1 else f"highest of {len(tried)} arms",
            reached,
            f"{best.name}, {difference} {first.unit}",
        ),
    ]


def is_control(view: RunView, arm: Arm, first: Measure) -> bool:
    """Tell whether an arm is there to be compared with.

    That is imitation beside arms that learn preferences, answers of the student itself, and pairs
    the wrong way round: their chosen side scores lower than their rejected one.

    Args:
        view: The run.
        arm: One of its tuned arms.
        first: The benchmark by which sides are compared.
    """
    if arm.outside is not None:
        return False
    if STUDENT in (arm.chosen, arm.rejected):
        return True
    if arm.supervised:
        return not all(other.supervised for other in view.arms)
    if not (view.is_scored(arm.chosen) and view.is_scored(arm.rejected)):
        return False
    chosen, rejected = (view.scores(n)[first.key]["mean"] for n in (arm.chosen, arm.rejected))
    return chosen < rejected


def _items_tile(view: RunView) -> dict[str, str]:
    summary = view.summary
    entries = [e for e in summary["benchmarks"].values() if e["kind"] != "average"]
    tasks = max(len(e["tasks"]) for e in entries)
    own = all(e["kind"] == "reference" for e in entries)
    parts = plural(tasks, "task") if own else plural(len(entries), "benchmark")
    note = f"{parts}, {plural(len(summary['seeds']), 'training seed')}"
    return _tile("evaluation items", count(summary["items"]), note)


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": one_line(note, 40)}


def forests(view: RunView) -> list[dict[str, Any]]:
    """A forest plot of each main benchmark: every arm's difference from base."""
    return [
        {"title": measure.label, "svg": _forest(view, measure, f"forest{i}")}
        for i, measure in enumerate(view.main)
        if view.arms
    ]


def _forest(view: RunView, measure: Measure, name: str) -> Any:
    rows, told = [], []
    for arm in view.arms:
        seeds = view.summary["arms"][arm.name]["per_seed"][measure.key]
        points = [value * measure.scale for value in seeds] if len(seeds) > 1 else []
        raw = view.difference(arm.name)[measure.key]
        note = f"{measure.difference(raw['mean'])}  {measure.interval(raw)}"
        rows.append(Row(arm.name, note, arm.index, [dot(raw, measure)], points))
        told.append(f"{one_line(arm.name)} {note}")
    description = f"Difference from base in {measure.label}, {measure.unit}: {'; '.join(told)}"
    axis = f"{measure.unit} of {measure.label}"
    if measure.scale == 1:
        axis = f"{measure.label}, {measure.unit}"
    return rows_figure(name, rows, (0.0, "base"), short_signed, axis, description)


def arm_rows(view: RunView) -> list[dict[str, Any]]:
    """Base and every arm with absolute scores and differences on the main benchmarks."""
    summary = view.summary["arms"]
    base = [{"score": _score(m, view.base[m.key])} for m in view.main]
    rows = [{"name": "base", "trained_on": "student, untouched", "method": "", "cells": base}]
    for arm in view.arms:
        cells = []
        for m in view.main:
            difference = view.difference(arm.name)[m.key]
            cells.append(
                {
                    "score": _score(m, summary[arm.name][m.key]),
                    "difference": (m.difference(difference["mean"]), m.interval(difference)),
                    "verdict": verdict(difference),
                    "style": STYLES[verdict(difference)],
                    "seeds": [m.difference(v) for v in summary[arm.name]["per_seed"][m.key]],
                }
            )
        row = {"name": arm.name, "trained_on": arm.trained_on, "method": arm.method}
        rows.append({**row, "cells": cells})
    return rows


def _score(measure: Measure, entry: dict[str, float]) -> tuple[str, str]:
    return measure.score(entry["mean"]), measure.score_interval(entry)


def benchmark_table(view: RunView) -> dict[str, Any] | None:
    """Differences from base by benchmark; None where the main table has all of them."""
    if len(view.main) == len(view.measures):
        return None
    rows = []
    for measure in view.measures:
        cells = {arm.name: view.difference(arm.name)[measure.key] for arm in view.arms}
        rows.append((measure.label, measure, view.base[measure.key], cells))
    return _heat_table(view, rows, "points, or the unit of a score without bounds")


def task_tables(view: RunView) -> list[dict[str, Any]]:
    """Per benchmark a table of differences from base by task (stratum), where there are several."""
    tables = []
    for measure in view.measures:
        tasks = view.base["by_task"].get(measure.key)
        if not tasks:
            continue
        rows = []
        for task, base in tasks.items():
            own = {a.name: view.difference(a.name)["by_task"][measure.key][task] for a in view.arms}
            rows.append((task, measure, base, own))
        tables.append({"metric": measure.label, **_heat_table(view, rows, measure.unit)})
    return tables


def _heat_table(
    view: RunView, rows: list[tuple[str, Measure, dict[str, Any], dict[str, Any]]], unit: str
) -> dict[str, Any]:
    """rows: name, how it is written, base's score, and each arm's difference."""
    amounts = [abs(d["mean"]) * m.scale for _, m, _, own in rows for d in own.values()]
    largest = max(amounts, default=0)
    shown = [
        {
            "task": name,
            "base": _score(measure, base),
            "cells": [_heat(measure, own[arm.name], largest) for arm in view.arms],
        }
        for name, measure, base, own in rows
    ]
    tallies = [_tally(arm.name, [own[arm.name] for *_, own in rows]) for arm in view.arms]
    return {"unit": unit, "rows": shown, "tallies": tallies}


def _heat(measure: Measure, difference: dict[str, float], largest: float) -> dict[str, Any]:
    style = STYLES[verdict(difference)]
    amount = abs(difference["mean"]) * measure.scale
    tint = FULL_TINT * amount / largest if largest and style != "flat" else 0
    return {
        "mean": measure.difference(difference["mean"]),
        "interval": measure.interval(difference),
        "style": style,
        "tint": f"{tint:.2f}",
    }


def _tally(name: str, differences: list[dict[str, float]]) -> dict[str, str]:
    found = [verdict(difference) for difference in differences]
    words = {GAIN: "up", LOSS: "down", NONE: "unclear"}
    parts = [f"{found.count(kind)} {word}" for kind, word in words.items() if kind in found]
    return {"arm": name, "counts": listing(parts)}
