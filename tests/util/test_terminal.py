"""Protects tables in a terminal: a narrow one loses whole columns and says so, never a digit."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from deltalearn.util.terminal import Column, Grid

COLUMNS = [
    Column("", number=False),
    Column("expected accuracy"),
    Column("against base", keep=1),
    Column("greedy accuracy"),
    Column("greedy against base", keep=2),
]
NAMES = ["base", "weak model smaller", "reversed-and-shuffled"]


def shown(grid: Grid, width: int) -> str:
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    grid.show(terminal)
    return terminal.file.getvalue()


def scores() -> Grid:
    grid = Grid(COLUMNS, "run: 1,100 items", elsewhere="report.html")
    for at, name in enumerate(NAMES):
        difference = f"+0.0{at} [+0.060, +0.074]"
        grid.row(name, f"0.37{at}", difference, f"0.48{at}", difference)
    return grid


@pytest.mark.parametrize("width", [200, 100, 80, 60, 45])
def test_names_and_scores_are_whole_at_any_usual_width(width):
    text = shown(scores(), width)
    assert "…" not in text
    assert all(cell_len(line) <= width for line in text.splitlines())
    for at, name in enumerate(NAMES):
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"0.37{at}" in line and f"0.48{at}" in line
        assert line.count(f"+0.0{at} [+0.060, +0.074]") == (width >= 66) + (width >= 91)


def test_a_dropped_column_is_named_with_the_place_where_it_is():
    assert "in a wider" not in shown(scores(), 100)
    assert "(greedy against base: in a wider terminal, or in report.html)" in shown(scores(), 80)
    text = " ".join(shown(scores(), 45).split())
    assert "(against base and greedy against base: in a wider terminal, or in report.html)" in text


def test_without_room_even_for_the_least_a_name_takes_several_lines():
    text = shown(scores(), 30)
    assert "…" not in text and "0.372" in text and "0.482" in text
    first = "".join(line[:10].strip() for line in text.splitlines())
    assert "reversed-and-shuffled" in first


def test_a_long_text_folds_and_leaves_the_numbers_whole():
    grid = Grid([Column("model", number=False), Column("n"), Column("x", number=False, fold=10)])
    grid.row("larger", "1,234,567", '{"max_tokens":48,"seed":0,"stop":["' + "a" * 90 + '"]}')
    text = shown(grid, 40)
    assert "larger" in text and "1,234,567" in text and "…" not in text
    assert text.count("a") - "larger".count("a") - "max_tokens".count("a") == 90


def test_what_others_wrote_is_shown_and_not_obeyed():
    grid = Grid([Column("model", number=False)])
    grid.row("\x1b[31m[bold]\u202eevil[/bold]")
    text = shown(grid, 80)
    assert "\x1b" not in text and "\u202e" not in text and "[bold]" in text


def test_wide_characters_count_as_two():
    grid = Grid([Column("", number=False), Column("n"), Column("m", keep=1)])
    grid.row("模" * 20, "1,000", "2,000")
    text = shown(grid, 50)
    assert "模" * 20 in text and "1,000" in text and "2,000" not in text
