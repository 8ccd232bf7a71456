"""Bootstrap over items and training seeds, the same draws for everything compared.

Items are resampled within their task, so that every draw keeps the mix of tasks; scores are macro
averages (mean of task means). All models see the same items in a draw, so a difference is paired:
what makes an item hard for both cancels. Training seeds of an arm are resampled too; with S seeds
their variance shows at (S - 1) / S of its size, so with two or three an interval is a little short.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 500  # draws at a time, to bound memory


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile-bootstrap 95% interval."""

    mean: float
    lo: float
    hi: float

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "lo": self.lo, "hi": self.hi}


@dataclass(frozen=True)
class Draws:
    """Resampled means of one scored model: per task (draws, tasks); `point` is (tasks,)."""

    point: np.ndarray
    tasks: np.ndarray

    def __sub__(self, other: Draws) -> Draws:
        return Draws(self.point - other.point, self.tasks - other.tasks)

    def average(self) -> Interval:
        """Macro average over tasks."""
        return _interval(self.point.mean(), self.tasks.mean(axis=1))

    def by_task(self) -> list[Interval]:
        """One interval per task, in the order of `Bootstrap.tasks`."""
        return [_interval(p, self.tasks[:, t]) for t, p in enumerate(self.point)]


def _interval(point: float, draws: np.ndarray) -> Interval:
    lo, hi = np.percentile(draws, [2.5, 97.5])
    return Interval(float(point), float(lo), float(hi))


class Bootstrap:
    """Resamples items within tasks, identically for every set of scores given to it."""

    def __init__(self, tasks: Sequence[str], draws: int = 10_000, seed: int = 0) -> None:
        """tasks: the task of each item, in item order."""
        self.tasks = list(dict.fromkeys(tasks))
        self._members = [np.flatnonzero(np.asarray(tasks) == task) for task in self.tasks]
        self._draws = draws
        self._seed = seed

    def __call__(self, scores: Mapping[Hashable, np.ndarray]) -> dict[Hashable, Draws]:
        """Resample every entry of `scores`, each of shape (training seeds, items).

        A model that was not trained has one row. Items are drawn once for all entries; training
        seeds are drawn for each entry by itself.
        """
        rows = np.concatenate(list(scores.values())).astype(np.float64)
        items_rng = np.random.default_rng([self._seed, 0])
        means = np.empty((self._draws, len(self.tasks), len(rows)))
        for at in range(0, self._draws, CHUNK):
            part = means[at : at + CHUNK]
            for t, members in enumerate(self._members):
                size = len(members)
                share = items_rng.multinomial(size, [1 / size] * size, size=len(part)) / size
                part[:, t] = share @ rows[:, members].T
        result: dict[Hashable, Draws] = {}
        first = 0
        for stream, (name, own) in enumerate(scores.items()):
            seeds = len(own)
            seeds_rng = np.random.default_rng([self._seed, 1, stream])
            share = seeds_rng.multinomial(seeds, [1 / seeds] * seeds, size=self._draws) / seeds
            tasks = np.einsum("dts,ds->dt", means[:, :, first : first + seeds], share)
            point = np.array([own[:, members].mean() for members in self._members])
            result[name] = Draws(point, tasks)
            first += seeds
        return result
