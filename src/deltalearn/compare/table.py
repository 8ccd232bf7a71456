"""A comparison in the terminal."""

from __future__ import annotations

from typing import Any

from deltalearn.compare.result import Average, Comparison, Row
from deltalearn.compare.verdict import amount, interval, p_text, points, verdict
from deltalearn.util.terminal import Column, Grid, console
from deltalearn.util.text_format import GAIN, LOSS, NONE, count, listing, one_line, plain

STYLES = {GAIN: "bold blue", LOSS: "bold dark_orange3", NONE: ""}
SIGNS = {GAIN: "▲", LOSS: "▼", NONE: " "}  # a verdict is not told by colour alone
METHODS = {
    "McNemar": "McNemar's exact test, interval of the same two counts (Tango)",
    "bootstrap": "paired bootstrap of items",
    "t": "t of the paired differences, with clusters or training seeds where there are any",
    "signs": "all items differ alike",
}
MARKS = {"McNemar": "m", "bootstrap": "b", "t": "t", "signs": "s"}


def print_comparison(comparison: Comparison) -> None:
    """Verdict, table, how everything was measured, notes."""
    terminal = console()
    _table(comparison).show(terminal)
    used = dict.fromkeys(
        one.test.p_by for one in (*comparison.rows, *comparison.averages) if one.test.p_by
    )
    terminal.print(
        "points, A minus B; detectable: at 5% with 80% power; p: "
        + "; ".join(f"({MARKS[by]}) {METHODS[by]}" for by in used),
        style="dim",
    )
    for line in _how(comparison):
        terminal.print(line, style="dim")
    terminal.print()
    first, *others = verdict(comparison)
    terminal.print(first, style="bold")
    for sentence in others:
        terminal.print(sentence)
    for note in comparison.notes:
        terminal.print(f"note: {note}", style="dim")


def _table(comparison: Comparison) -> Grid:
    a, b = (one_line(arm.name, 60) for arm in (comparison.a, comparison.b))
    heads = {  # and what goes first in a narrow terminal
        "n": 2, "A": 0, "B": 0, "A − B": 0, "95% interval": 1, "p": 4, "Holm p": 3, "detectable": 5,
    }  # fmt: skip
    columns = [Column(head, keep=keep) for head, keep in heads.items()]
    title = f"A: {a}\nB: {b}"
    table = Grid([Column("", number=False), *columns], title, elsewhere="--json")

    def add(one: Row | Average, name: str, n: str, holm: str) -> None:
        name = f"{SIGNS[one.verdict]} {name}"
        table.row(name, *_cells(one, n, holm), style=STYLES[one.verdict])

    for row in comparison.rows:
        add(row, row.title, _n(row), p_text(row.holm))
    table.rule()
    for average in comparison.averages:
        add(average, average.label, count(average.n), "")
    return table


def _cells(one: Row | Average, n: str, holm: str) -> list[str]:
    test = one.test
    p = f"{p_text(test.p)} {MARKS[test.p_by]}" if test.p_by else "–"
    detectable = amount(one, one.detectable) if one.detectable > 0 else "–"
    sides = (one.a, one.b)
    scores = [f"{100 * x:.1f}" if one.bounded else plain(x, 4) for x in sides]
    return [n, *scores, points(one, one.difference), interval(one), p, holm, detectable]


def _n(row: Row) -> str:
    return f"{count(row.n)} of {count(row.full)}" if row.subset and row.full else count(row.n)


def _how(comparison: Comparison) -> list[str]:
    """How each benchmark was asked and averaged; a line for those that are alike."""
    alike: dict[str, list[str]] = {}
    for row in comparison.rows:
        entry = row.entry
        parts = [_short(entry.get("metric")), _averaging(row)]
        parts += [f"{_short(entry['shots'])} shots"] if "shots" in entry else []
        parts += [] if entry.get("chat", True) else ["no chat template"]
        parts += [] if row.bounded else [row.unit]
        if entry.get("max_tokens") is not None:
            parts.append(f"{_short(entry['max_tokens'])} tokens")
        if stops := entry.get("stops"):
            parts.append(
                "stops " + one_line(" ".join(str(stop).replace("\n", "\\n") for stop in stops), 60)
            )
        alike.setdefault(", ".join(parts), []).append(row.title)
    return [f"{listing(names)}: {how}" for how, names in alike.items()]


def _averaging(row: Row) -> str:
    """`macro of 57`, `micro`, `mean of 588 clusters`."""
    name = _short(row.entry.get("aggregation"))
    if row.clusters is not None:
        return f"{name}, in {count(row.clusters)} clusters"
    return f"{name} of {row.strata}" if row.strata > 1 else name


def _short(value: Any) -> str:
    return "–" if value is None else one_line(str(value), 40)
