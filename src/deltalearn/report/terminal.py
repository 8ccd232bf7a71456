"""The table a person sees when a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from deltalearn.report.summary import BASE
from deltalearn.util.terminal import console
from deltalearn.util.text_format import GAIN, LOSS, NONE, verdict

MAX_BENCHMARKS = 3  # with intervals; the others are in a table of their own


def print_summary(run: Path) -> None:
    """Print arms and weak models with intervals, and where the report is."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    terminal = console()
    table = Table(title=f"{summary['name']}: {summary['items']} items, seeds {summary['seeds']}")
    table.add_column("")
    shown = list(summary["benchmarks"])[:MAX_BENCHMARKS]
    for key in shown:
        table.add_column(summary["benchmarks"][key]["title"], justify="right")
        table.add_column("against base [95%]", justify="right", no_wrap=True)
    for name, entry in summary["teachers"].items():
        table.add_row(f"weak model {name}", *_cells(entry, shown), style="dim")
    table.add_section()
    for name, entry in summary["arms"].items():
        table.add_row(name, *_cells(entry, shown))
    if shown:
        terminal.print(table)
    if len(summary["benchmarks"]) > MAX_BENCHMARKS:
        terminal.print(_by_benchmark(summary))
    for note in summary["notes"]:
        terminal.print(f"note: {note}", style="dim")
    terminal.print(
        f"report:  {run / 'report.html'}\nnumbers: {run / 'summary.json'}", soft_wrap=True
    )


def _cells(entry: dict[str, Any], keys: list[str]) -> list[str]:
    cells = []
    for key in keys:
        cells.append(f"{entry[key]['mean']:.3f}" if key in entry else "")
        cells.append(_difference(entry.get("diff_vs_base", {}).get(key)))
    return cells


def _difference(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    if one["lo"] is None:
        return f"{one['mean']:+.3f} (no interval)"
    return f"{one['mean']:+.3f} [{one['lo']:+.3f}, {one['hi']:+.3f}]"


def _by_benchmark(summary: dict[str, Any]) -> Table:
    """A row per benchmark: base's score, and the other arms' differences from it."""
    table = Table(title="by benchmark: base, and differences from it; ▲ ▼ interval without zero")
    arms = {name: own for name, own in summary["arms"].items() if "diff_vs_base" in own}
    for head in ("", "base", *arms):
        table.add_column(head, justify="right" if head else "left")
    for key, entry in summary["benchmarks"].items():
        cells = []
        for own in arms.values():
            one = own["diff_vs_base"][key]
            sign = {GAIN: "▲ ", LOSS: "▼ ", NONE: ""}[verdict(one)]
            cells.append(f"{sign}{one['mean']:+.3f}")
        table.add_row(entry["title"], f"{summary['arms'][BASE][key]['mean']:.3f}", *cells)
    return table
