"""Drawing of a theory figure: axes, legends, bands of colour, and the three forms it is kept in.

A panel is drawn once for the page (inline SVG without a title, which the caption gives) and once
for the files (SVG and PNG with the title).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from deltalearn.theory.simulate import Estimate
from deltalearn.util.svg import INK, MUTED, PAPER, SERIES, drawing, inline, margins, save

WIDTH, PLOT_HEIGHT = 430, 250  # SVG units
LEFT, RIGHT, BOTTOM, TOP = 66, 16, 46, 10
LEGEND_LINE, TITLE_LINE = 17, 19
TITLE_COLUMNS = 50
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
# Light to dark in even steps of lightness, so that it survives a grey print and colour blindness.
BANDS = ("#e3eef6", "#c3dcec", "#9cc6de", "#6facce", "#478fba", "#2871a2", "#135483", "#0a3760")
SUBSCRIPT = re.compile(r"\b([aku])_([0cr])\b")


@dataclass(frozen=True)
class Panel:
    """One figure of the theory page.

    Attributes:
        name: Of its files.
        title: The finding.
        description: For who cannot see the figure.
        draw: Puts everything into the axes it is given.
        legend: (rows, columns) of the legend above the plot.
        right: Margin there, wider for a colour bar.
    """

    name: str
    title: str
    description: str
    draw: Callable[[Axes], None]
    legend: tuple[int, int]
    right: float = RIGHT

    def inline(self) -> Markup:
        """For the page: text is text in the page's font, colours follow its light and dark."""
        with self._drawn() as figure:
            svg = inline(figure, self.name, f"{self.title}. {self.description}")
        for i, shade in enumerate(BANDS):
            svg = svg.replace(shade, Markup("var(--b{})").format(i))
        return _subscripts(svg)

    def save(self, folder: Path) -> None:
        """Write `folder`/<name>.svg and .png, with the title; text in the SVG is outlines."""
        title = textwrap.wrap(self.title, TITLE_COLUMNS)
        with self._drawn(TITLE_LINE * len(title) + 6) as figure:
            matplotlib.rcParams.update({"svg.fonttype": "path", "mathtext.default": "regular"})
            height = figure.get_size_inches()[1] * 72
            place = {"weight": "bold", "size": 13, "va": "top", "linespacing": 1.25}
            figure.text(14 / WIDTH, 1 - 8 / height, "\n".join(title), **place)
            _mathematics(figure)
            save(figure, folder, self.name)

    @contextmanager
    def _drawn(self, title: float = 0) -> Iterator[Figure]:
        """The figure, with so many units kept free for a title."""
        rows, columns = self.legend
        top = TOP + LEGEND_LINE * rows + title
        with drawing(self.name, WIDTH, top + PLOT_HEIGHT + BOTTOM) as figure:
            axes = margins(figure, LEFT, self.right, top, BOTTOM)
            axes.grid(True)
            axes.set_axisbelow(True)
            axes.tick_params(which="both", length=0)
            self.draw(axes)
            _legend(axes, columns)
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    axis.set_major_formatter(FuncFormatter(_count))
                    axis.set_minor_formatter(NullFormatter())
                else:
                    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
            yield figure


def _mathematics(figure: Figure) -> None:
    """Turn `a_0` and the like into real subscripts, where matplotlib sets the type."""
    for text in figure.findobj(Text):
        if SUBSCRIPT.search(text.get_text()):
            text.set_text(SUBSCRIPT.sub(r"$\1_\2$", text.get_text()))
            text.set_parse_math(True)


def _subscripts(svg: Markup) -> Markup:
    """The same where the browser does, in the text elements alone."""
    lowered = r'\1<tspan dy="0.3em" font-size="75%">\2</tspan><tspan dy="-0.225em">'

    def lower(match: re.Match[str]) -> str:
        words, found = SUBSCRIPT.subn(lowered, match.group(2))
        return match.group(1) + words + "</tspan>" * found + "</text>"

    changed = re.sub(r"(<text[^>]*>)([^<]*)</text>", lower, svg)
    return Markup(changed)  # noqa: S704 - what was there, escaped already, and our own tspans


def _count(value: float, _: object = None) -> str:
    """A power of ten on a log axis: `0.01`, `1,000`, `10⁵`."""
    if value < 1e4:
        return f"{value:,g}" if value < 1 else f"{value:,.0f}"
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(round(np.log10(value))))


def colour(index: int) -> str:
    """Colour of series number `index`."""
    return SERIES[index % len(SERIES)]


def curve(axes: Axes, x: np.ndarray, y: np.ndarray, index: int, label: str) -> None:
    """A theory line; series differ in colour and dash."""
    style = {"color": colour(index), "linestyle": DASHES[index % len(DASHES)], "linewidth": 2}
    axes.plot(x, y, label=label, **style)


def points(axes: Axes, x: np.ndarray, found: Estimate, index: int, label: str = "_") -> None:
    """Simulated means with bars of two standard errors; a marker for each series."""
    style = {"fmt": MARKERS[index % len(MARKERS)], "markersize": 5.5, "elinewidth": 1.4}
    style |= {"markeredgecolor": PAPER, "markeredgewidth": 0.8, "capsize": 2.5, "zorder": 4}
    bars = 2 * np.nan_to_num(found.error)
    axes.errorbar(x, found.mean, yerr=bars, color=colour(index), label=label, **style)


def _legend(axes: Axes, columns: int) -> None:
    """Draw the legend above the plot, in the lines kept free for it."""
    high = axes.bbox.height / axes.figure.dpi * 72
    style = {"frameon": False, "fontsize": 10.5, "handlelength": 2.2, "columnspacing": 1.4}
    style |= {"borderpad": 0, "borderaxespad": 0, "labelspacing": 0.35, "handletextpad": 0.6}
    anchor = (0, 1 + 7 / high)
    axes.legend(loc="lower left", bbox_to_anchor=anchor, ncols=columns, **style)


def level(axes: Axes, value: float, label: str) -> None:
    """A horizontal line to read the curves against, labelled below its left end."""
    axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    place = {"xytext": (4, -4), "textcoords": "offset points", "va": "top", "size": 10.5}
    axes.annotate(label, (0, value), xycoords=axes.get_yaxis_transform(), color=MUTED, **place)


def mark(axes: Axes, x: float, y: float, label: str, shift: tuple[float, float], **more) -> None:
    """A ring around a point, and its name beside it."""
    style = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.5}
    axes.plot([x], [y], "o", markersize=10, zorder=5, **style)
    place = {"xytext": shift, "textcoords": "offset points", "size": 10.5, "color": INK}
    axes.annotate(label, (x, y), zorder=6, **{**place, **more})


def band_scale(axes: Axes, levels: Sequence[float], title: str) -> None:
    """Draw the key of the bands' colours, at the right of the plot."""
    scale = axes.inset_axes((1.05, 0, 0.05, 1))
    for i, shade in enumerate(BANDS):
        scale.axhspan(i, i + 1, color=shade, linewidth=0)
    scale.set_ylim(0, len(levels))
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.set_yticks(range(len(levels)), [f"{value:g}" for value in levels])
    scale.tick_params(length=0, labelsize=10)
    scale.spines[:].set_visible(False)
    place = {"xytext": (0, 4), "textcoords": "offset points", "ha": "left", "size": 10.5}
    axes.annotate(title, (1.05, 1), xycoords=axes.transAxes, color=MUTED, **place)
