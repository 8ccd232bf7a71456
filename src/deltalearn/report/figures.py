"""The figures of the report. Each function draws one and returns it as an inline <svg>.

All are narrow (a phone's width at readable text sizes); the page sets several side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deltalearn.util.svg import (
    GRID,
    INK,
    MUTED,
    SERIES,
    TICK_DECIMALS,
    drawing,
    inline,
    interval_mark,
    margins,
    short,
    value_axis,
)
from deltalearn.util.text_format import Measure, one_line, plain

WIDTH = 400
CURVE_WIDTH = 340  # these stand three to a row
BAND = 50  # height of one row of a row figure
BOLD, SMALL = 7.8, 6.5  # width of a character of a row's name, and of its note
SIDE = 14  # margin left and right of a row figure
LABEL_STEP = 15  # least distance between two curve labels
DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))

Formatter = Callable[[float], str]


@dataclass(frozen=True)
class Dot:
    """A value with its interval, if it has one; hollow or filled."""

    mean: float
    lo: float | None
    hi: float | None
    filled: bool = True


def dot(entry: Mapping[str, Any], measure: Measure, *, filled: bool = True) -> Dot:
    """An entry of the summary in the measure's own scale."""
    low, high = (None if end is None else end * measure.scale for end in (entry["lo"], entry["hi"]))
    return Dot(entry["mean"] * measure.scale, low, high, filled)


@dataclass(frozen=True)
class Row:
    """One band of a row figure: a name, a note at the right, and what is drawn below them.

    `link` joins the first dot to the second by an arrow; `points` are small single values.
    """

    name: str
    note: str
    colour: int | None  # None: not an arm
    dots: Sequence[Dot]
    points: Sequence[float] = ()
    link: bool = False


@dataclass(frozen=True)
class Curve:
    """One arm: a line per training seed (x, y), and their mean."""

    name: str
    colour: int
    mean: tuple[np.ndarray, np.ndarray]
    seeds: Sequence[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


def colour_of(index: int) -> str:
    """The colour of the arm with this index; they repeat, with another dash (`dash_of`)."""
    return SERIES[index % len(SERIES)]


def dash_of(index: int) -> object:
    """The line style of the arm with this index."""
    return DASHES[index // len(SERIES) % len(DASHES)]


def rows_figure(
    name: str,
    rows: Sequence[Row],
    line: tuple[float, str],
    tick: Formatter | None,
    axis: str,
    description: str,
) -> Markup:
    """Rows of values with intervals around the vertical `line` (where, label)."""
    top, bottom = 22, 42
    height = top + BAND * len(rows) + bottom
    with drawing(name, WIDTH, height) as figure:
        axes = margins(figure, SIDE, SIDE, top, bottom)
        value_axis(axes, BAND * len(rows), [line[0], *_values(rows)], axis, tick)
        _mark(axes, *line, len(rows))
        for i, row in enumerate(rows):
            _row(axes, i, row)
        return inline(figure, name, one_line(description))


def _row(axes: Axes, index: int, row: Row) -> None:
    text_at, at = BAND * index + 17, BAND * index + 34
    colour = MUTED if row.colour is None else colour_of(row.colour)
    across = axes.get_yaxis_transform()
    if index:
        axes.axhline(BAND * index, color=GRID, linewidth=0.7)
    room = WIDTH - 2 * SIDE - SMALL * len(row.note) - 10
    axes.text(0, text_at, one_line(row.name, int(room / BOLD)), transform=across, weight="bold")
    axes.text(1, text_at, row.note, transform=across, ha="right", color=MUTED, size=11)
    if row.link:
        start, end = row.dots[0].mean, row.dots[1].mean
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.6, "shrinkA": 5, "shrinkB": 4}
        axes.annotate("", (end, at), (start, at), arrowprops=arrow)
    for dot in row.dots:
        interval_mark(axes, at, dot.mean, (dot.lo, dot.hi), colour, filled=dot.filled)
    if row.points:
        places = [at + 9] * len(row.points)
        style = {"markersize": 4, "markeredgewidth": 0, "alpha": 0.75}
        axes.plot(row.points, places, "o", color=colour, zorder=4, **style)


def _mark(axes: Axes, where: float, label: str, rows: int) -> None:
    """The line that rows are read against, labelled above them and open where their text is."""
    for i in range(rows):
        ends = [BAND * i + 23, BAND * (i + 1)]
        axes.plot([where, where], ends, color=MUTED, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
    low, high = axes.get_xlim()
    fraction = (where - low) / (high - low)
    side = "left" if fraction < 0.2 else "right" if fraction > 0.8 else "center"
    place = {"xytext": (0, 5), "textcoords": "offset points", "ha": side, "annotation_clip": False}
    place |= {"xycoords": axes.get_xaxis_transform(), "color": MUTED, "size": 11}
    axes.annotate(one_line(label), (where, 1), **place)


def _values(rows: Sequence[Row]) -> list[float]:
    ends = [end for row in rows for dot in row.dots for end in (dot.lo, dot.hi, dot.mean)]
    return [*(end for end in ends if end is not None), *(p for row in rows for p in row.points)]


def curves_figure(
    name: str,
    curves: Sequence[Curve],
    line: tuple[float, str] | None,
    tick: Formatter | None,
    limits: tuple[float, float] | None,
    description: str,
) -> Markup:
    """Curves over training steps, each labelled at its end; `line` is a labelled level."""
    labels = [one_line(curve.name, 12) for curve in curves]
    right = 24 + 7.2 * max(map(len, labels))
    height = max(225, LABEL_STEP * len(curves) + 60)
    with drawing(name, CURVE_WIDTH, height) as figure:
        axes = margins(figure, 44, right, 10, 40)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        for curve in curves:
            _curve(axes, curve)
        axes.margins(x=0.01)
        axes.set_ylim(*limits) if limits else axes.margins(y=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if tick is not None:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.set_xlabel("step", labelpad=3)
        if line is not None:
            _level(axes, *line)
        _end_labels(axes, curves, labels)
        return inline(figure, name, one_line(description))


def _curve(axes: Axes, curve: Curve) -> None:
    colour, dash = colour_of(curve.colour), dash_of(curve.colour)
    if len(curve.seeds) > 1:
        for x, y in curve.seeds:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
    axes.plot(*curve.mean, color=colour, linewidth=2.2, linestyle=dash)


def _level(axes: Axes, level: float, label: str) -> None:
    low, high = axes.get_ylim()
    if low <= level <= high:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        place = {"xytext": (-4, 4), "textcoords": "offset points", "ha": "right"}
        axes.annotate(
            label, (1, level), xycoords=axes.get_yaxis_transform(), color=MUTED, size=11, **place
        )


def _end_labels(axes: Axes, curves: Sequence[Curve], labels: Sequence[str]) -> None:
    """Names right of the last points, moved apart, each joined to its curve."""
    low, high = axes.get_ylim()
    unit = (high - low) / (axes.bbox.height / axes.figure.dpi * 72)  # data per SVG unit
    ends = [float(curve.mean[1][-1]) for curve in curves]
    places = spread(ends, LABEL_STEP * unit, high)
    edge = axes.get_xlim()[1]
    along = (edge - axes.get_xlim()[0]) / (axes.bbox.width / axes.figure.dpi * 72)
    for curve, label, end, place in zip(curves, labels, ends, places, strict=True):
        last = float(curve.mean[0][-1])
        style = {"color": colour_of(curve.colour), "linewidth": 1.2, "clip_on": False}
        axes.plot([last, edge + 6 * along, edge + 14 * along], [end, place, place], **style)
        axes.text(edge + 18 * along, place, label, va="center", color=INK, size=11.5)


def spread(values: Sequence[float], distance: float, high: float) -> list[float]:
    """Places near `values`, at least `distance` apart and none above `high`."""
    order = np.argsort(values, kind="stable")
    places = np.asarray(values, dtype=float)[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + distance)
    if len(places) and places[-1] > high:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - distance)
    result = np.empty_like(places)
    result[order] = places
    return result.tolist()


def percent(value: float) -> str:
    """A fraction as a tick label."""
    return f"{short(plain(100 * value, TICK_DECIMALS))}%"
