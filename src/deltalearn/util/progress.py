"""Progress bars with ETA and throughput in a terminal; a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False)
EVERY = 60.0  # seconds between lines where there is no terminal


class Bar:
    """One running bar: `advance` moves it and adds to the amount shown per second."""

    def __init__(self, progress: Progress, task: TaskID, unit: str) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._amount = 0
        self._start = self._said = time.monotonic()
        self._first = progress.tasks[0].completed

    def advance(self, steps: int, amount: int = 0, note: str = "") -> None:
        """Move by `steps`; `amount` (tokens, pairs, ...) counts towards the rate shown."""
        self._amount += amount
        rate = self._amount / max(time.monotonic() - self._start, 1e-9)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"  # never "0" of what goes on
        shown = f"{speed} {self._unit}/s  {note}" if self._amount else note
        self._progress.update(self._task, advance=steps, note=shown)
        if self._progress.disable and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            console.print(self._line(shown), soft_wrap=True)

    def _line(self, note: str) -> str:
        task = self._progress.tasks[0]
        done, total = task.completed, task.total or 0
        speed = (done - self._first) / max(time.monotonic() - self._start, 1e-9)
        left = f"{(total - done) / speed / 60:,.0f} min left" if speed else ""
        return f"{task.description}: {done:,.0f} of {total:,.0f}  {left}  {note}".rstrip()


@contextmanager
def progress(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """Show a progress bar while the block runs.

    In a terminal (standard error) it moves; elsewhere a job of over a minute prints a line a
    minute.

    Args:
        title: Name of the job.
        total: Steps of the job.
        unit: Name of the amounts whose rate is shown, "tokens" for example.
        done: Steps done before.

    Yields:
        The bar, to be advanced.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(title, total=total, completed=done, note="")
        yield Bar(shown, task, unit)
