"""The comparison as a forest plot, in SVG and PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.text import Text

from deltalearn.compare.result import Average, Comparison, Row
from deltalearn.compare.verdict import headline, interval, judge, p_text, points, seeds
from deltalearn.util.svg import (
    GRID,
    INK,
    MUTED,
    drawing,
    interval_mark,
    margins,
    save,
    short_signed,
    value_axis,
)
from deltalearn.util.text_format import GAIN, LOSS, NONE, count, one_line

WIDTH, ROW, GAP = 800, 25, 10  # SVG units; GAP before the averages
LEFT, RIGHT, BOTTOM, SIDE = 244, 248, 46, 16
TITLE_LINE, TITLE_COLUMNS, HEAD = 19, 90, 30
FOOT_LINE, FOOT_COLUMNS = 15, 124
COLOURS = {GAIN: "#0072b2", LOSS: "#d55e00", NONE: MUTED}  # the report's, of gains and losses


def save_forest(comparison: Comparison, path: Path) -> list[Path]:
    """Write `path` with the endings .svg and .png; text in the SVG is outlines."""
    title = textwrap.wrap(_claim(comparison), TITLE_COLUMNS)
    foot = textwrap.wrap(_foot(comparison), FOOT_COLUMNS)
    rows: list[Row | Average] = [*comparison.rows, *comparison.averages]
    top = 14 + TITLE_LINE * len(title) + HEAD
    below = BOTTOM + FOOT_LINE * len(foot) + 8
    plot = ROW * len(rows) + (GAP if comparison.averages else 0)
    height = top + plot + below
    with drawing(path.stem, WIDTH, height) as figure:
        matplotlib.rcParams["svg.fonttype"] = "path"
        place = {"va": "top", "linespacing": 1.25}
        figure.text(
            SIDE / WIDTH, 1 - 12 / height, "\n".join(title), weight="bold", size=13, **place
        )
        _draw(margins(figure, LEFT, RIGHT, top, below), rows, len(comparison.rows), plot)
        at = (FOOT_LINE * len(foot) + 4) / height
        figure.text(SIDE / WIDTH, at, "\n".join(foot), size=10.5, color=MUTED, **place)
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        return save(figure, path.parent, path.stem)


def _claim(comparison: Comparison) -> str:
    """The verdict without its numbers."""
    return one_line(headline(comparison).partition(" (95%")[0])


def _foot(comparison: Comparison) -> str:
    a, b = comparison.a.name, comparison.b.name
    words = f"A: {a}. B: {b}. {one_line(comparison.split, 20).capitalize()} split. "
    if any(row.subset for row in comparison.rows):
        words += "*: a subset of the benchmark. "
    words += "Filled: shown at 5%"
    several = "; p of benchmarks is Holm's, all held to 5% together. "
    words += several if len(comparison.rows) > 1 else ". "
    words += " ".join([*judge(comparison.rows), seeds(comparison)])
    return one_line(words)


def _draw(axes: Axes, rows: Sequence[Row | Average], first: int, plot: float) -> None:
    drawn = [one for one in rows if one.bounded] or rows
    scale = 100 if drawn[0].bounded else 1
    values = [0.0, *(scale * x for one in drawn for x in (one.difference, *(one.test.ends or ())))]
    label = "points" if scale == 100 else "difference"
    value_axis(axes, plot, values, f"{label}, A minus B, with 95% intervals", short_signed)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=2)
    for edge, text, side in _cells("", "items", "A − B", "95% interval", "p"):
        _write(axes, edge, -9, text, side, color=MUTED, size=10.5)
    for i, row in enumerate(rows):
        offset = GAP if i >= first else 0
        if i == first:
            _rule(axes, ROW * i + GAP / 2)
        _row(axes, row, ROW * (i + 0.5) + offset, scale if row in drawn else None)


def _row(axes: Axes, one: Row | Average, at: float, scale: float | None) -> None:
    """A row's text and, unless its unit is not that of the axis (`scale` None), its interval."""
    if isinstance(one, Row):
        name, n, p = one.title + (" *" if one.subset else ""), count(one.n), one.holm
    else:
        name, n, p = one.label, "", one.test.p
    if scale is not None:
        ends = one.test.ends and (scale * one.test.ends[0], scale * one.test.ends[1])
        interval_mark(
            axes, at, scale * one.difference, ends or (None, None), COLOURS[one.verdict],
            filled=one.verdict != NONE, bold=isinstance(one, Average),
            marker="o" if isinstance(one, Row) else "D",
        )  # fmt: skip
    for edge, text, side in _cells(name, n, points(one, one.difference), interval(one), p_text(p)):
        _write(axes, edge, at, one_line(text, 40), side, size=11, weight="normal")


def _cells(name: str, n: str, value: str, ends: str, p: str) -> list[tuple[float, str, str]]:
    """(distance in units from the left edge of the figure, text, alignment)."""
    right = WIDTH - RIGHT
    return [
        (SIDE, name, "left"),
        (LEFT - 12, n, "right"),
        (right + 52, value, "right"),
        (right + 176, ends, "right"),
        (WIDTH - SIDE, p, "right"),
    ]


def _write(axes: Axes, edge: float, at: float, text: str, side: str, **style) -> None:
    """Text in the margins: `edge` units from the figure's left edge, at the data's height `at`."""
    x = (edge - LEFT) / (WIDTH - LEFT - RIGHT)
    across = axes.get_yaxis_transform()
    axes.text(x, at, text, transform=across, ha=side, va="center_baseline", **style)


def _rule(axes: Axes, at: float) -> None:
    """A line over the whole width, between benchmarks and averages."""
    inner = WIDTH - LEFT - RIGHT
    ends = [(SIDE - LEFT) / inner, (WIDTH - SIDE - LEFT) / inner]
    style = {"color": GRID, "linewidth": 1.2, "clip_on": False}
    axes.plot(ends, [at, at], transform=axes.get_yaxis_transform(), **style)
