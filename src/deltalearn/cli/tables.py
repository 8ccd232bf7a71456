"""Rows as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from deltalearn.util.terminal import console
from deltalearn.util.text_format import visible


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print these columns of the rows. What a model or a server wrote is shown, never obeyed."""
    table = Table()
    for column in columns:
        number = bool(rows) and isinstance(rows[0][column], int)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        values = (row[column] for column in columns)
        table.add_row(*(f"{v:,}" if isinstance(v, int) else visible(str(v)) for v in values))
    console().print(table)
