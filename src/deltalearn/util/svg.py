"""A matplotlib figure as an SVG element that can stand in a page among others.

Colours become CSS variables, so the page's light and dark colours reach into the figures; text
stays text in the page's own font; what an SVG file needs and a page does not is dropped.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deltalearn.util.files import replacing
from deltalearn.util.text_format import signed

INK, MUTED, GRID, PAPER = "#1b2430", "#5f6b7a", "#d5dbe2", "#fdfdfe"
# Chosen by search: at least 3:1 on the page and 20 CIELAB units apart, also to eyes that lack one
# kind of cone; neither the blue nor the orange that the page keeps for gains and losses.
SERIES = ("#009e82", "#702a63", "#8a8f0e", "#6b80ce", "#c13845", "#16308f")
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
}

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same measures everywhere
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a name is a dollar
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "path.simplify": True,
}
XLINK = "{http://www.w3.org/1999/xlink}href"
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
TICK_DECIMALS = 9  # more than any axis needs, fewer than floating point gets wrong
PNG_DPI = 200
POINTS_PER_INCH = 72  # one SVG unit is one point, so sizes given in units are divided by this


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[Figure]:
    """Make a figure in the house style, whatever matplotlibrc says.

    Draw it and call `inline` inside the block.

    Args:
        name: Makes the ids in the SVG its own.
        width: In SVG units.
        height: In SVG units.

    Yields:
        The figure, empty.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        # A script that the measuring font lacks is drawn by the browser in a font that has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))


def margins(figure: Figure, left: float, right: float, top: float, bottom: float) -> Axes:
    """Add axes with these margins to a figure.

    Args:
        figure: Of `drawing`.
        left: In SVG units, as the others.
        right: Margin at the right.
        top: Margin at the top.
        bottom: Margin at the bottom.

    Returns:
        The axes.
    """
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    return figure.add_axes(box)


def value_axis(
    axes: Axes,
    height: float,
    values: Sequence[float],
    label: str,
    tick: Callable[[float], str] | None,
) -> None:
    """Make `axes` those of a forest plot: rows from 0 down to `height`, and one axis of values.

    Args:
        axes: to be changed.
        height: of all rows, in SVG units.
        values: everything that must be seen on the axis.
        label: of the axis.
        tick: how its numbers are written; None: as they are.
    """
    room = 0.06 * (max(values) - min(values)) or 1e-3
    axes.set_ylim(height, 0)
    axes.set_xlim(min(values) - room, max(values) + room)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if tick is not None:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.set_xlabel(label, labelpad=3)


def interval_mark(
    axes: Axes,
    at: float,
    value: float,
    ends: tuple[float | None, float | None],
    colour: str,
    *,
    filled: bool = True,
    bold: bool = False,
    marker: str = "o",
) -> None:
    """Draw a value with its interval, if it has one, in a forest plot.

    Args:
        axes: Of the plot.
        at: Height in the plot.
        value: Where the marker stands.
        ends: Ends of the interval; None for no end.
        colour: Of marker and interval.
        filled: False draws the marker's outline only.
        bold: Draw it larger, as a headline.
        marker: matplotlib's name of the marker.
    """
    if ends[0] is not None:
        width = 3.6 if bold else 2.8
        axes.plot(ends, [at, at], color=colour, linewidth=width, alpha=0.55, zorder=3)
    style = {"markerfacecolor": colour if filled else PAPER, "markeredgewidth": 1.8}
    axes.plot([value], [at], marker, color=colour, zorder=4, markersize=8, **style)


def short_signed(value: float) -> str:
    """A signed number for a tick, with as many decimals as it needs."""
    return short(signed(value, TICK_DECIMALS))


def short(number: str) -> str:
    """A number with decimals, without the zeros at its end."""
    return number.rstrip("0").rstrip(".")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as `folder`/<name>.svg and .png, the same bytes every time.

    Args:
        figure: Of `drawing`.
        folder: Made if it is not there.
        name: Of the files, without an ending.

    Returns:
        The files.
    """
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    for path in paths:
        kind = path.suffix.removeprefix(".")
        extra: Any = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": PNG_DPI}
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, facecolor="white", **extra)
    return paths


def inline(figure: Figure, name: str, description: str) -> Markup:
    """Write a figure as an <svg> element for a page.

    Args:
        figure: Of `drawing`.
        name: All ids in the element start with it.
        description: One line of visible text for who cannot see the figure.

    Returns:
        The element.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib's own output
    _drop_file_parts(root)
    _own_ids(root, name)
    for element in root.iter():
        _shorten(element)
    _describe(root, name, description)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - serialised, so escaped


def _drop_file_parts(root: ET.Element) -> None:
    """Remove namespaces, metadata and the style sheet, which would style the whole page."""
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        if XLINK in parent.attrib:
            parent.set("href", parent.attrib.pop(XLINK))
    root.attrib.pop("version", None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")


def _own_ids(root: ET.Element, name: str) -> None:
    """Keep the ids that something refers to, and give them the figure's prefix."""
    used: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "href":
                used.add(value.removeprefix("#"))
                element.set(key, f"#{name}-{value.removeprefix('#')}")
            elif "url(#" in value:
                used |= set(re.findall(r"url\(#([^)]+)\)", value))
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")


def _shorten(element: ET.Element) -> None:
    for key, value in element.attrib.items():
        if key in ("d", "x", "y", "transform", "width", "height", "viewBox"):
            value = LONG_NUMBER.sub(lambda m: f"{float(m.group()):.2f}", value)
        elif key == "style":
            value = COLOUR.sub(lambda m: VARIABLES.get(m.group(), m.group()), value)
            if element.tag == "text":
                value = re.sub(r"(\d+px) [^;]+", r"\1 var(--font)", value)
        element.set(key, value)


def _describe(root: ET.Element, name: str, description: str) -> None:
    width = root.attrib.pop("width").removesuffix("pt")
    root.attrib.pop("height")
    root.set("style", f"{root.get('style')}; max-width: {1.25 * float(width):.0f}px")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    title = ET.Element("title", {"id": f"{name}-title"})
    title.text = description
    root.insert(0, title)
