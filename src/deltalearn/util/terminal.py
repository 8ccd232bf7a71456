"""The terminal, and the tables that are printed to it: names and numbers in them are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import fill

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deltalearn.util.text_format import listing, visible

GAP = 2  # blanks between columns
PIPE_WIDTH = 200  # columns; a file or a pipe has no width of its own


def console() -> Console:
    """Standard output as a terminal: what models and servers wrote is shown, never obeyed."""
    found = Console(highlight=False, markup=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


@dataclass(frozen=True)
class Column:
    """A column of a table.

    number: right-aligned. keep: 0 stays in any terminal; of the others the highest goes first where
    there is no room. fold: it may be this narrow, its texts on several lines; None: as wide as they
    are.
    """

    head: str
    number: bool = True
    keep: int = 0
    fold: int | None = None


@dataclass
class Grid:
    """A table that drops whole columns in a narrow terminal, and says which.

    Attributes:
        columns: Of which the first, the names of the rows, is always shown.
        title: Above it.
        elsewhere: Where the columns that were dropped can be read as well.
    """

    columns: Sequence[Column]
    title: str = ""
    elsewhere: str = ""
    _rows: list[tuple[list[str], str]] = field(default_factory=list)
    _rules: set[int] = field(default_factory=set)  # rows with a rule behind them

    def row(self, *cells: str, style: str = "") -> None:
        """Add a row; unseen characters in it are shown."""
        self._rows.append(([visible(cell) for cell in cells], style))

    def rule(self) -> None:
        """Set what follows apart from what is there."""
        self._rules.add(len(self._rows) - 1)

    def show(self, terminal: Console) -> None:
        """Print it, as wide as the terminal is."""
        shown, dropped = self._room(terminal.width)
        table = Table(
            title=Text(self.title) if self.title else None,
            title_justify="left", title_style="bold", header_style="bold",
            box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False,
            show_header=any(column.head for column in self.columns),
        )  # fmt: skip
        last_resort = self._needs(shown) > terminal.width
        for at, i in enumerate(shown):
            column = self.columns[i]
            folds = column.fold is not None or (at == 0 and last_resort)
            table.add_column(
                Text(self._head(i)), justify="right" if column.number else "left",
                no_wrap=not folds, overflow="fold",
            )  # fmt: skip
        for at, (cells, style) in enumerate(self._rows):
            texts = (Text(cells[i]) for i in shown)
            table.add_row(*texts, style=style, end_section=at in self._rules)
        terminal.print(table)
        if dropped:
            names = listing(dict.fromkeys(self.columns[i].head.replace("\n", " ") for i in dropped))
            other = f", or in {self.elsewhere}" if self.elsewhere else ""
            terminal.print(f"({names}: in a wider terminal{other})", style="dim")

    def _room(self, width: int) -> tuple[list[int], list[int]]:
        """Columns that are shown, and those for which there is no room."""
        shown, dropped = list(range(len(self.columns))), []
        while self._needs(shown) > width:
            last = max(shown, key=lambda i: (self.columns[i].keep, i))
            if not self.columns[last].keep:
                break
            shown.remove(last)
            dropped.append(last)
        return shown, sorted(dropped)

    def _needs(self, columns: Sequence[int]) -> int:
        return sum(map(self._width, columns)) + GAP * (len(columns) - 1)

    def _width(self, i: int) -> int:
        """The least width of a column: a head may take several lines, a cell as `fold` says."""
        column = self.columns[i]
        words = max(map(cell_len, column.head.split()), default=0)
        lines = [line for cells, _ in self._rows for line in cells[i].split("\n")]
        cells = max(map(cell_len, lines), default=0)
        return max(words, cells if column.fold is None else min(cells, column.fold))

    def _head(self, i: int) -> str:
        return fill(self.columns[i].head, max(self._width(i), 1), break_long_words=False)
