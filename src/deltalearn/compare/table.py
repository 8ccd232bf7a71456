"""A comparison in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deltalearn.compare.result import Comparison, Difference, Row
from deltalearn.compare.verdict import amount, interval, is_bounded, p_text, points, unit, verdict
from deltalearn.util.terminal import console
from deltalearn.util.text_format import GAIN, LOSS, NONE, count, listing, one_line, plain

PLAIN: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
WIDE = 104  # columns that the whole table needs
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
    narrow = terminal.width < WIDE
    terminal.print(_table(comparison, narrow=narrow))
    used = dict.fromkeys(one.test.p_by for one in _all(comparison) if one.test.p_by)
    terminal.print(
        "points, A minus B; detectable: at 5% with 80% power; p: "
        + "; ".join(f"({MARKS[by]}) {METHODS[by]}" for by in used),
        style="dim",
    )
    if narrow:
        terminal.print("(p and detectable: in a wider terminal, or in --json)", style="dim")
    for line in _how(comparison):
        terminal.print(line, style="dim")
    terminal.print()
    first, *others = verdict(comparison)
    terminal.print(first, style="bold")
    for sentence in others:
        terminal.print(sentence)
    for note in comparison.notes:
        terminal.print(f"note: {note}", style="dim")


def _all(comparison: Comparison) -> list[Difference]:
    return [*comparison.rows, *comparison.averages]


def _table(comparison: Comparison, *, narrow: bool) -> Table:
    a, b = (one_line(arm.name, 60) for arm in (comparison.a, comparison.b))
    table = Table(title=f"A: {a}\nB: {b}", title_justify="left", title_style="bold", **PLAIN)
    heads = ["n", "A", "B", "A − B", "95% interval", "p", "Holm p", "detectable"]
    kept = [i for i, head in enumerate(heads) if not (narrow and head in ("p", "detectable"))]
    table.add_column("", overflow="fold")
    for i in kept:
        table.add_column(heads[i], justify="right", no_wrap=True)

    def add(one: Difference, name: str, n: str, holm: str) -> None:
        cells = _cells(one, n, holm)
        name = f"{SIGNS[one.verdict]} {name}"
        table.add_row(name, *(cells[i] for i in kept), style=STYLES[one.verdict])

    for row in comparison.rows:
        add(row, row.title, _n(row), p_text(row.holm))
    table.add_section()
    for average in comparison.averages:
        add(average, average.label, count(average.n), "")
    return table


def _cells(one: Difference, n: str, holm: str) -> list[str]:
    test = one.test
    p = f"{p_text(test.p)} {MARKS[test.p_by]}" if test.p_by else "–"
    detectable = amount(one, one.detectable) if one.detectable > 0 else "–"
    sides = (one.a, one.b)
    scores = [f"{100 * x:.1f}" if is_bounded(one) else plain(x, 4) for x in sides]
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
        parts += [] if row.bounded else [unit(row)]
        if entry.get("max_tokens") is not None:
            parts.append(f"{_short(entry['max_tokens'])} tokens")
        if stops := entry.get("stops"):
            parts.append("stops " + one_line(" ".join(_literal(stop) for stop in stops), 60))
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


def _literal(stop: object) -> str:
    return str(stop).replace("\n", "\\n")
