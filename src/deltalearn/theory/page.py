"""The theory's page: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from markupsafe import Markup, escape

from deltalearn import __version__
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.imitation import RACE_CORRELATION
from deltalearn.theory.panels import SUBSCRIPT, Panel
from deltalearn.theory.predictions import Measured, Theory
from deltalearn.theory.setting import LEAST_RANDOM
from deltalearn.theory.simulate import NEEDS
from deltalearn.util.page import page_template


def render_page(
    rows: Sequence[tuple[str, str, str]],
    geometry: Geometry,
    theory: Theory,
    measured: Measured,
    panels: Sequence[Panel],
) -> str:
    """Render the page of a setting; the same setting gives the same page, byte for byte.

    Args:
        rows: The table: (group, label, value) of each line.
        geometry: The setting's directions.
        theory: Population results.
        measured: The simulation to hold against them.
        panels: Figures, in order.

    Returns:
        One HTML file that needs nothing else.
    """
    template = page_template("deltalearn.theory", filters={"typeset": _typeset})
    return template.render(
        verdict=verdict(theory),
        groups=[
            (name, [(what, value) for _, what, value in entries])
            for name, entries in groupby(rows, key=lambda row: row[0])
        ],
        figures={panel.name: {"title": panel.title, "svg": panel.inline()} for panel in panels},
        g=geometry,
        t=theory,
        plan=measured.plan,
        race_correlation=RACE_CORRELATION,
        gap_dimension=max(LEAST_RANDOM, min(measured.plan.dimension, 100)),
        parameters=_parameters(geometry, measured),
        version=__version__,
    )


def verdict(theory: Theory) -> str:
    """State what training on the preference between the two teachers does, as a headline."""
    start, best, limit = theory.initial_cosine, theory.best_cosine, theory.limit_cosine
    if best <= start:
        return f"Preference training does not help: from {start:.3f} no step raises the cosine"
    change = f"from {start:.3f} to {best:.4f}"
    if limit < start:
        return f"Stopped in time, preference training lifts the cosine {change}; overdone, it ends at {limit:.3f}"  # noqa: E501
    return f"Preference training lifts the cosine {change}, and stays above the start"


def _parameters(geometry: Geometry, measured: Measured) -> list[tuple[str, str]]:
    plan = measured.plan
    names = ["dimension", "trials", "steps", "batch", "rate", "temperature", "loss", "beta"]
    names += ["inputs", "freedom", "correlation", "seed"]
    shown = {**asdict(geometry), "errors": ",".join(f"{c:g}" for c in geometry.errors)}
    shown |= {n: getattr(plan, n) for n in names if n not in NEEDS or n in plan.used}
    return [(f"--{n}", f"{v:.6g}" if isinstance(v, float) else str(v)) for n, v in shown.items()]


def _typeset(text: str) -> Markup:
    """Escaped, with `a_0` as a subscript, and no line break within parentheses."""
    kept = re.sub(r"\(.*?\)", lambda match: match.group().replace(" ", "\u00a0"), text)
    escaped = str(escape(kept))  # as Markup, the substitution would escape its own tags
    return Markup(SUBSCRIPT.sub(r"\1<sub>\2</sub>", escaped))  # noqa: S704 - escaped before
