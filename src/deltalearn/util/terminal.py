"""The terminal that tables are printed to."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 200  # columns; a file or a pipe has no width of its own


def console(*, markup: bool = False) -> Console:
    """Standard output as a terminal: what models and servers wrote is shown, never obeyed.

    markup: whether `[bold]` in a text is a style; only for texts that are all our own.
    """
    found = Console(highlight=False, markup=markup)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found
