"""The table a person sees when a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from deltalearn.util.terminal import console


def print_summary(run: Path) -> None:
    """Print arms and weak models with intervals, and where the report is."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    terminal = console()
    table = Table(title=f"{summary['name']}: {summary['items']} items, seeds {summary['seeds']}")
    table.add_column("")
    for metric in summary["metrics"]:
        table.add_column(metric.replace("_", " "), justify="right")
        table.add_column("against base [95%]", justify="right", no_wrap=True)
    for name, entry in summary["teachers"].items():
        table.add_row(f"weak model {name}", *_cells(entry, summary["metrics"]), style="dim")
    table.add_section()
    for name, entry in summary["arms"].items():
        table.add_row(name, *_cells(entry, summary["metrics"]))
    terminal.print(table)
    terminal.print(
        f"report:  {run / 'report.html'}\nnumbers: {run / 'summary.json'}", soft_wrap=True
    )


def _cells(entry: dict[str, Any], metrics: list[str]) -> list[str]:
    cells = []
    for metric in metrics:
        cells.append(f"{entry[metric]['mean']:.3f}")
        difference = entry.get("diff_vs_base", {}).get(metric)
        cells.append(
            f"{difference['mean']:+.3f} [{difference['lo']:+.3f}, {difference['hi']:+.3f}]"
            if difference
            else ""
        )
    return cells
