"""Progress bars with ETA and throughput in a terminal; silence elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


class Bar:
    """One running bar: `advance` moves it and adds to the amount shown per second."""

    def __init__(self, progress: Progress, task: int, unit: str) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._amount = 0
        self._start = time.monotonic()

    def advance(self, steps: int, amount: int = 0, note: str = "") -> None:
        """Move by `steps`; `amount` (tokens, pairs, ...) counts towards the rate shown."""
        self._amount += amount
        rate = self._amount / max(time.monotonic() - self._start, 1e-9)
        shown = f"{rate:,.0f} {self._unit}/s  {note}" if self._amount else note
        self._progress.update(self._task, advance=steps, note=shown)


@contextmanager
def progress(title: str, *, total: int, unit: str) -> Iterator[Bar]:
    """Show a bar for `total` steps while the block runs, if standard error is a terminal."""
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
        yield Bar(shown, shown.add_task(title, total=total, note=""), unit)
