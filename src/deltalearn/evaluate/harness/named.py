"""lm_eval's own tasks, by their name there: which of their metrics counts, and what an item is."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError, needs
from deltalearn.evaluate.entries import ItemRow
from deltalearn.evaluate.harness.run import Tasks, quiet, reasoning_of
from deltalearn.evaluate.tulu3.benchmark import Benchmark, Kind
from deltalearn.evaluate.tulu3.sources import NoData
from deltalearn.util.paths import looked_for

KINDS: dict[str, Kind] = {
    "multiple_choice": "choice",
    "loglikelihood": "choice",
    "generate_until": "text",
}
LIKE = 3  # names that are shown for one that is none


@cache
def _manager(include_path: str | None) -> Any:
    with needs("benchmarks of lm_eval need it", "evaluate"):
        from lm_eval.tasks import TaskManager
    quiet()
    return TaskManager(include_path=include_path)


def check_names(names: Iterable[str], include_path: str | None, others: Iterable[str]) -> None:
    """Make sure that lm_eval has tasks of these names.

    Args:
        names: Tasks, groups or tags.
        include_path: A directory of further tasks, which is read as YAML alone.
        others: Names of benchmarks that are none of lm_eval's, for the error.

    Raises:
        UserError: If there is no such directory or name.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"{include_path}: the directory of lm_eval tasks is not there{looked_for(include_path)}"
        )
    others = list(others)
    for name in names:
        known = _manager(include_path).task_index
        if name not in known:
            near = difflib.get_close_matches(name, {*others, *known}, LIKE) or others
            raise UserError(
                f"no benchmark {name!r}: the suite has {', '.join(others)}; no questions and no "
                f"task of lm_eval are called that; near: {', '.join(near)}"
            )


def load_named(name: str, include_path: str | None) -> Tasks:
    """The tasks behind a name with their data.

    Args:
        name: A task, a group or a tag.
        include_path: As for `check_names`.

    Raises:
        NoData: The data cannot be had.
        UserError: Items have no score that could be kept, or their programs would run unguarded.
    """
    try:
        tasks = _manager(include_path).load([name])["tasks"]
    except (LookupError, TypeError, ValueError, AttributeError, OSError, ImportError) as error:
        raise NoData(f"{name} does not load ({type(error).__name__}: {error})") from error
    kinds = {task.OUTPUT_TYPE for task in tasks.values()}
    if unsafe := [n for n, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]:
        raise UserError(
            f"{unsafe[0]} would run programs of the model in this process; humaneval and "
            "humanevalplus of the suite run them in a sandbox"
        )
    if len(kinds) > 1 or not kinds <= set(KINDS):
        raise UserError(
            f"{name}: asks for {', '.join(sorted(map(str, kinds)))}, which has no score for each "
            "item that could be compared; choose a task of multiple choice or of generated answers"
        )
    metrics = {_metric(n, task) for n, task in tasks.items()}
    if len(metrics) > 1:
        raise UserError(
            f"{name}: its tasks are measured by {', '.join(sorted(metrics))}; name them one by one"
        )
    kind = KINDS[kinds.pop()]
    return NamedTasks(Benchmark(name, name, 0, metrics.pop(), "micro", kind), tasks)


def _metric(name: str, task: Any) -> str:
    """The first of the task's metrics that is a mean over items and better when higher."""
    better = task.higher_is_better()
    for metric, aggregation in task.aggregation().items():
        if getattr(aggregation, "__name__", aggregation) == "mean" and better.get(metric, True):
            return str(metric)
    raise UserError(
        f"{name}: none of its metrics ({', '.join(task.aggregation())}) is a mean of scores of "
        "items that is better when higher; it cannot be compared item by item"
    )


class NamedTasks(Tasks):
    """A task, a group or a tag of lm_eval: items have any form and are called by their places.

    A stratum is a task.
    """

    def ids(self, name: str) -> list[str]:
        """Ids of a task's items."""
        return [f"{name}/{at}" for at in range(len(self.tasks[name].eval_docs))]

    def docs(self, name: str, places: list[int]) -> Any:
        """The items at these places, as JSON has them, and how they are asked."""
        docs = self.tasks[name].eval_docs
        config = self.tasks[name].dump_config()
        return json.loads(json.dumps([[docs[at] for at in places], config], default=str))

    def rows(self, samples: dict[str, list[dict[str, Any]]]) -> list[ItemRow]:
        """A row per item, of the first filter where a task has several."""
        return [
            self._row(name, sample, single=len(self.tasks) == 1)
            for name, found in samples.items()
            for sample in found
            if sample["filter"] == found[0]["filter"]
        ]

    def _row(self, name: str, sample: dict[str, Any], single: bool) -> ItemRow:
        value = sample.get(self.benchmark.metric)
        if not isinstance(value, int | float):
            raise UserError(
                f"{name}: {self.benchmark.metric} is no number for each item, but {value!r:.60}; "
                "it cannot be compared item by item"
            )
        found = sample["filtered_resps"]
        choice = self.benchmark.kind == "choice"
        return {
            "id": f"{name}/{sample['doc_id']}",
            "stratum": "" if single else name,
            "cluster": "",
            "score": float(value),
            "prompt": str(sample["arguments"][0][0]),
            "output": json.dumps(found) if choice else str(found[0]),
            "reasoning": "" if choice else reasoning_of(sample),
            "extracted": "",
            "gold": str(sample["target"]),
        }
