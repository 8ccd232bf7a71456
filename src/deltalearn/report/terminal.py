"""The table a person sees when a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltalearn.report.summary import BASE
from deltalearn.util.terminal import Column, Grid, console
from deltalearn.util.text_format import GAIN, LOSS, NONE, listing, one_line, verdict

MAX_BENCHMARKS = 3  # with intervals; the others are in a table of their own


def print_summary(run: Path) -> None:
    """Print arms and weak models with intervals, and where the report is."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    terminal = console()
    shown = list(summary["benchmarks"])[:MAX_BENCHMARKS]
    columns = [Column("", number=False)]
    for at, key in enumerate(shown):
        title = one_line(summary["benchmarks"][key]["title"])
        columns.append(Column(title))
        columns.append(Column(f"{title} against base [95%]", keep=1 + at))
    seeds = listing(map(str, summary["seeds"]))
    title = f"{summary['name']}: {summary['items']:,} items, seeds {seeds}"
    table = Grid(columns, title, elsewhere="report.html")
    for name, entry in summary["teachers"].items():
        table.row(f"weak model {name}", *_cells(entry, shown), style="dim")
    table.rule()
    for name, entry in summary["arms"].items():
        table.row(name, *_cells(entry, shown))
    if shown:
        table.show(terminal)
    if len(summary["benchmarks"]) > MAX_BENCHMARKS:
        _by_benchmark(summary).show(terminal)
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


def _by_benchmark(summary: dict[str, Any]) -> Grid:
    """A row per benchmark: base's score, and the other arms' differences from it."""
    arms = {name: own for name, own in summary["arms"].items() if "diff_vs_base" in own}
    columns = [Column("", number=False), Column("base"), *(Column(a, keep=1) for a in arms)]
    title = "by benchmark: base, and differences from it; ▲ ▼ interval without zero"
    table = Grid(columns, title, elsewhere="report.html")
    for key, entry in summary["benchmarks"].items():
        cells = []
        for own in arms.values():
            one = own["diff_vs_base"][key]
            sign = {GAIN: "▲ ", LOSS: "▼ ", NONE: ""}[verdict(one)]
            cells.append(f"{sign}{one['mean']:+.3f}")
        table.row(entry["title"], f"{summary['arms'][BASE][key]['mean']:.3f}", *cells)
    return table
