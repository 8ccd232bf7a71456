"""Rows as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.util.terminal import Column, Grid, console


def print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], elsewhere: str = ""
) -> None:
    """Print rows of values, each in the column whose head is its key.

    Args:
        rows: A mapping each.
        columns: Those that are shown, as far as there is room.
        elsewhere: Where the others can be read.
    """
    grid = Grid(columns, elsewhere=elsewhere)
    for row in rows:
        values = (row[column.head] for column in columns)
        grid.row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
    grid.show(console())
