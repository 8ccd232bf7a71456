"""Run directory -> summary.json for machines and report.html for people."""

from __future__ import annotations

from pathlib import Path

from deltalearn.util.files import write_json, write_text


def write_report(run: Path) -> None:
    """Write `run`/summary.json and `run`/report.html from the run's artefacts."""
    from deltalearn.report.page import render_page
    from deltalearn.report.summary import summarize

    summary = summarize(run)
    write_json(run / "summary.json", summary)
    write_text(run / "report.html", render_page(run, summary))
