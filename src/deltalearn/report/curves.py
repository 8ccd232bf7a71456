"""Training logs: the curves, and one line per arm on whether training went as it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltalearn.report.figures import Curve, curves_figure, percent
from deltalearn.report.view import Arm, RunView
from deltalearn.util.files import read_jsonl
from deltalearn.util.text_format import plain, plural, share, signed

POINTS = 48  # of a drawn curve; longer logs are averaged down to this
STILL = 0.005  # nats per token: a side that moved less did not move
FAR = 1.0  # nats per token that chosen answers may lose before it is worth a look
HARDLY = 0.55  # margin positive on less than this share of pairs: little was learned
LN2 = math.log(2)
NEAR = 0.02  # of ln 2: a first loss so near began there


@dataclass(frozen=True)
class Panel:
    """One quantity of the log, drawn for the arms that have it."""

    key: str
    title: str
    note: str
    line: tuple[float, str] | None = None
    tick: Callable[[float], str] | None = None
    shared: str | None = None  # panels of one group have the same vertical axis


@dataclass(frozen=True)
class Log:
    """Log of one arm: per quantity an array (seeds, steps)."""

    arm: Arm
    values: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Steps that every seed has."""
        return self.values["loss"].shape[1]

    def start(self, key: str) -> float:
        """Mean over seeds at the first step."""
        return float(self.values[key][:, 0].mean())

    def end(self, key: str) -> float:
        """Mean over seeds and the last tenth of the steps."""
        return float(self.values[key][:, -math.ceil(self.steps / 10) :].mean())

    def begin(self, key: str) -> float:
        """Mean over seeds and the first tenth of the steps."""
        return float(self.values[key][:, : math.ceil(self.steps / 10)].mean())


def read_logs(view: RunView) -> list[Log]:
    """The logs of every arm that has some."""
    logs = []
    for arm in view.arms:
        folder = view.path / "arms" / arm.name
        paths = [folder / f"seed-{seed}" / "log.jsonl" for seed in view.summary["seeds"]]
        runs = [records for path in paths if path.is_file() and (records := read_jsonl(path))]
        if runs:
            logs.append(Log(arm, _arrays(runs)))
    return logs


def _arrays(runs: Sequence[list[dict[str, Any]]]) -> dict[str, np.ndarray]:
    steps = min(map(len, runs))
    keys = [k for k in runs[0][0] if all(k in records[i] for records in runs for i in (0, -1))]
    return {
        key: np.array([[float(r.get(key, math.nan)) for r in run[:steps]] for run in runs])
        for key in keys
    }


def panels(view: RunView, logs: Sequence[Log]) -> list[dict[str, Any]]:
    """The figures, ready for the page."""
    drawn = []
    for i, (panel, members) in enumerate(_plan(logs)):
        shared = [log for p, m in _plan(logs) if p.shared and p.shared == panel.shared for log in m]
        keys = {p.key for p, _ in _plan(logs) if p.shared and p.shared == panel.shared}
        limits = _limits(shared, keys) if panel.shared else None
        curves = [_curve(log, panel.key) for log in members]
        told = "; ".join(f"{c.name} ends at {plain(float(c.mean[1][-1]), 3)}" for c in curves)
        svg = curves_figure(
            f"curve{i}",
            curves,
            panel.line,
            panel.tick,
            limits,
            f"{panel.title} over training steps. {told}",
        )
        drawn.append({"title": panel.title, "note": panel.note, "svg": svg})
    return drawn


def _plan(logs: Sequence[Log]) -> list[tuple[Panel, list[Log]]]:
    """Which panels there are, each with its logs; margins of different losses stay apart."""
    preference = [log for log in logs if not log.arm.supervised]
    supervised = [log for log in logs if log.arm.supervised]
    methods = list(dict.fromkeys(log.arm.method for log in preference))
    # Where the loss begins is ln 2 for a sigmoid of the margin; others begin elsewhere.
    sigmoid = all(abs(log.start("loss") - LN2) < NEAR for log in preference)
    start = (LN2, "ln 2: no preference") if sigmoid else None
    plan = [(Panel("loss", "Preference loss", "lower is better", start), preference)]
    for method in methods:
        unit = "nats per token" if method.endswith("_norm") else "nats per answer"
        title = "Margin" if len(methods) == 1 else f"Margin of {method}"
        panel = Panel("margin", title, f"chosen minus rejected log-ratio, {unit}", (0.0, ""))
        plan.append((panel, [log for log in preference if log.arm.method == method]))
    ratio = "tuned against untouched, nats per token"
    plan += [
        (
            Panel("accuracy", "Accuracy", "pairs with a positive margin", (0.5, "chance"), percent),
            preference,
        ),
        (Panel("chosen_logratio", "Log-ratio of chosen", ratio, (0.0, ""), None, "r"), preference),
        (
            Panel("rejected_logratio", "Log-ratio of rejected", ratio, (0.0, ""), None, "r"),
            preference,
        ),
        (Panel("loss", "Supervised loss", "nats per token of the chosen answers"), supervised),
    ]
    kept = [(panel, [log for log in own if panel.key in log.values]) for panel, own in plan]
    return [(panel, own) for panel, own in kept if own]


def _curve(log: Log, key: str) -> Curve:
    values = log.values[key]
    mean = _binned(values.mean(axis=0), POINTS // 2)
    seeds = [_binned(row, POINTS) for row in values]
    return Curve(log.arm.name, log.arm.index, mean, seeds)


def _binned(values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of `points` stretches of nearly equal length, at the mean step of each."""
    edges = np.linspace(0, len(values), min(points, len(values)) + 1).round().astype(int)
    starts = edges[:-1]
    sizes = np.diff(edges)
    steps = np.arange(1, len(values) + 1)
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def _limits(logs: Sequence[Log], keys: set[str]) -> tuple[float, float]:
    """Common limits of panels that are read against each other."""
    drawn = [
        _binned(row, POINTS)[1] for log in logs for key in keys for row in log.values.get(key, [])
    ]
    low, high = min(0.0, *map(np.min, drawn)), max(0.0, *map(np.max, drawn))
    pad = 0.06 * (high - low) or 1e-3
    return float(low - pad), float(high + pad)


def health(log: Log) -> dict[str, Any]:
    """One arm in plain words; `looks` are the things that a person should look at."""
    tell = _supervised if log.arm.supervised else _preference
    words, looks = tell(log)
    if "grad_norm" in log.values:
        clipped = (log.values["grad_norm"] > log.arm.max_grad_norm).mean()
        words += (
            f" Gradients were clipped in {share(clipped, 1)} of the steps, to a norm of "
            f"{log.arm.max_grad_norm:g}: it bounds the length of a step and is no fault by itself."
        )
    extent = f"{log.steps:,} steps, {plural(len(log.values['loss']), 'seed')}"
    return {"arm": log.arm, "extent": extent, "words": words, "looks": looks}


def _supervised(log: Log) -> tuple[str, list[str]]:
    before, after = log.begin("loss"), log.end("loss")
    words = f"Supervised loss {before:.3f} → {after:.3f} nats per token."
    looks = ["the loss did not fall"] if after >= before else []
    return words, looks


def _preference(log: Log) -> tuple[str, list[str]]:
    unit = "nats per token" if log.arm.method.endswith("_norm") else "nats per answer"
    loss, start = log.end("loss"), log.start("loss")
    looks = []
    words = f"Loss {start:.3f} → {loss:.3f}"
    if "margin" in log.values:
        margin, accuracy = log.end("margin"), log.end("accuracy")
        if margin <= 0:
            looks.append("the margin is not positive: the pairs were not learned")
        elif accuracy < HARDLY:
            looks.append("the margin is positive on hardly more than half of the pairs")
        words += (
            f"; margin {signed(margin, 3)} {unit}, positive on {share(accuracy, 1)} of the pairs"
        )
    if loss > start:
        looks.append(
            f"the loss is above {start:.3f}, where it began: a lower learning rate may help"
        )
    words += "."
    if "chosen_logratio" in log.values:  # of methods that have a reference
        chosen, rejected = log.end("chosen_logratio"), log.end("rejected_logratio")
        if chosen < -FAR:
            looks.append(
                f"chosen answers lost more than {FAR:g} nat per token: read what this student "
                "writes"
            )
        words += (
            f" Chosen {signed(chosen, 3)}, rejected {signed(rejected, 3)} nats per token: "
            f"{_movement(chosen, rejected)}."
        )
    return words, looks


def _movement(chosen: float, rejected: float) -> str:
    """How the two sides moved, in words."""
    if max(abs(chosen), abs(rejected)) < STILL:
        return "neither side moved"
    if rejected == chosen:
        return "both moved alike"
    if rejected > chosen:
        return "the rejected answers gained on the chosen ones"
    if chosen <= -STILL:
        return "both became less likely, the rejected answers more so, which is usual for DPO"
    if rejected >= STILL:
        return "both became more likely, the chosen answers more so"
    if chosen < STILL:
        return "the chosen answers stayed, the rejected ones became less likely"
    return "the chosen answers became more likely than they were, the rejected ones not"
