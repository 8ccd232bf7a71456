"""Put the sections of the report together into one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from deltalearn.report import compare, counts, curves, samples
from deltalearn.report.view import RunView
from deltalearn.util.failure import informed
from deltalearn.util.page import page_template
from deltalearn.util.progress import console
from deltalearn.util.text_format import count, visible

Shown = TypeVar("Shown")


def render_page(run: Path, summary: dict[str, Any]) -> str:
    """Render the report of a run. The same run gives the same page, byte for byte.

    Args:
        run: The run's directory.
        summary: The numbers of `summary.json`.

    Returns:
        One HTML file that needs nothing else.
    """
    view = RunView.load(run, summary)
    logs = _shown("the logs of tuning", lambda: curves.read_logs(view))
    # Everything printed is made visible, then escaped; only our own figures are markup.
    template = page_template("deltalearn.report", finalize=_finalize)
    return template.render(
        name=view.summary["name"],
        summary=view.summary,
        items=count(view.summary["items"]),
        measures=view.main,
        benchmark_table=compare.benchmark_table(view),
        several_seeds=len(view.summary["seeds"]) > 1,
        headline=compare.headline(view),
        delta_figures=_shown("figures of the answers", lambda: samples.delta_figures(view)),
        generators=samples.generator_rows(view),
        pairings=samples.pairing_rows(view),
        forests=_shown("forest plots", lambda: compare.forests(view)),
        arm_rows=compare.arm_rows(view) if view.main else [],
        arms=view.arms,
        task_tables=compare.task_tables(view),
        panels=_shown("curves", lambda: curves.panels(view, logs)),
        health=_shown("notes on the curves", lambda: [curves.health(log) for log in logs]),
        without_log=[arm.name for arm in view.arms if arm not in [log.arm for log in logs]],
        samples=_shown("samples", lambda: samples.samples(view)),
        student_answers=_shown("the student's answers", lambda: samples.student_answers(view)),
        count_tables=_shown("counts", lambda: counts.count_tables(view)),
        overlap=counts.overlap(view),
        rejects=counts.first_rejects(view),
        timings=_shown("timings", lambda: counts.timings(view)),
        stage_rows=counts.stage_rows(view),
        facts=counts.facts(view),
        models=counts.models(view),
        recipe=counts.recipe_text(view),
    )


def _shown(what: str, find: Callable[[], Shown]) -> Shown | tuple[()]:
    """A part of the page that shows what the summary's numbers do not need; empty if it fails."""
    found = informed(f"report: {what}", find, console.print)
    return () if found is None else found


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value
