"""The log beside the result directories: which models were asked which items.

A best model chosen among many by the items of the test is better on them by chance alone. So who
has seen them is written down before the first of them is asked, whatever becomes of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from deltalearn.util.files import now

NAME = "evaluations.jsonl"
EVALS = "evals"  # where results go unless somebody says otherwise
BELOW = ("*", "*/*")  # where logs of earlier versions may lie


def folder_of_log(out: Path) -> Path:
    """Find the folder whose log counts a result directory: one for all that are set side by side.

    The outermost folder above `out` that has a log already, else one called `evals`, else the first
    folder of a relative path, as in `results/delta/seed-0`; else the folder that `out` is in.
    """
    above = list(reversed(out.absolute().parents))
    found = [folder for folder in above if (folder / NAME).is_file()]
    found += [folder for folder in above if folder.name == EVALS]
    if found:
        return found[0]
    if not out.is_absolute() and len(out.parts) > 1 and ".." not in out.parts:
        return Path(out.parts[0])
    return out.parent


class TestSetLog:
    """One line for each model and set of items: benchmark, split, limit, number, digest.

    Logs of earlier versions, which lie further down, are counted as well.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME

    def enter(self, seen: dict[str, Any], name: str) -> None:
        """Note that the model is about to be asked; once for the same model and items.

        Several processes may do so at the same time.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{NAME}.lock")):
            if any(seen.items() <= line.items() for line in _lines(self.path)):
                return
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**seen, "name": name, "time": now()}) + "\n")

    def test_models(self, benchmarks: Iterable[str]) -> int:
        """Count the models that were asked items of the test, or of its held-out part."""
        wanted = {None, *benchmarks}  # None: a line of an earlier version, of all benchmarks
        older = (f for part in BELOW for f in self.path.parent.glob(f"{part}/{NAME}"))
        return len(
            {
                line.get("model")
                for file in (self.path, *older)
                for line in _lines(file)
                if line.get("split") != "dev" and line.get("benchmark") in wanted
            }
        )


def _lines(file: Path) -> list[dict[str, Any]]:
    """What can be read: a line that was cut when the disk was full must end no run."""
    found = []
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]
