"""Put the sections of the report together into one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deltalearn.report import compare, counts, curves, samples
from deltalearn.report.view import RunView
from deltalearn.util.text_format import count, visible


def render_page(run: Path, summary: dict[str, Any]) -> str:
    """Render the report of a run. The same run gives the same page, byte for byte.

    Args:
        run: The run's directory.
        summary: The numbers of `summary.json`.

    Returns:
        One HTML file that needs nothing else.
    """
    view = RunView.load(run, summary)
    template = _environment().get_template("template.html.j2")
    return template.render(
        name=view.summary["name"],
        summary=view.summary,
        items=count(view.summary["items"]),
        measures=view.main,
        benchmark_table=compare.benchmark_table(view),
        several_seeds=len(view.summary["seeds"]) > 1,
        headline=compare.headline(view),
        **_teachers(view),
        **_arms(view),
        **_training(view),
        samples=samples.samples(view),
        **_books(view),
    )


def _teachers(view: RunView) -> dict[str, Any]:
    return {
        "delta_figures": samples.delta_figures(view),
        "generators": samples.generator_rows(view),
        "pairings": samples.pairing_rows(view),
    }


def _arms(view: RunView) -> dict[str, Any]:
    return {
        "forests": compare.forests(view),
        "arm_rows": compare.arm_rows(view) if view.main else [],
        "arms": view.arms,
        "task_tables": compare.task_tables(view),
    }


def _training(view: RunView) -> dict[str, Any]:
    logs = curves.read_logs(view)
    known = {log.arm.name for log in logs}
    return {
        "panels": curves.panels(view, logs),
        "health": [curves.health(log) for log in logs],
        "without_log": [arm.name for arm in view.arms if arm.name not in known],
    }


def _books(view: RunView) -> dict[str, Any]:
    return {
        "count_tables": counts.count_tables(view),
        "rejects": counts.first_rejects(view),
        "timings": counts.timings(view),
        "stage_rows": counts.stage_rows(view),
        "facts": counts.facts(view),
        "models": counts.models(view),
        "recipe": counts.recipe_text(view),
    }


def _environment() -> Environment:
    """Everything printed is made visible, then escaped; only our own figures are markup."""
    return Environment(
        loader=PackageLoader("deltalearn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value
