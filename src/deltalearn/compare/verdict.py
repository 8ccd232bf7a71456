"""What a comparison allows one to say. A difference that was not shown is never called none."""

from __future__ import annotations

from collections.abc import Sequence

from deltalearn.compare.result import Average, Comparison, Row
from deltalearn.evaluate.matching import JUDGED
from deltalearn.util.text_format import GAIN, LOSS, NONE, count, listing, one_line, plural, signed

DECIMALS = 2
UNBOUNDED_DECIMALS = 4
FEW_RUNS = 3
MAX_SUBSETS = 4  # subsets named one by one if all are


def points(one: Row | Average, value: float) -> str:
    """A signed difference in points, or in units of a score without bounds."""
    return signed(100 * value, DECIMALS) if one.bounded else signed(value, UNBOUNDED_DECIMALS)


def amount(one: Row | Average, value: float) -> str:
    """`points` without a sign."""
    return points(one, abs(value)).removeprefix("+")


def interval(one: Row | Average) -> str:
    """`−0.31 to +1.20`; `none` where there is no interval."""
    return " to ".join(points(one, end) for end in one.test.ends or ()) or "none"


def p_text(p: float | None) -> str:
    """`0.031`, `<0.001`, or `–` where there is none."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def verdict(comparison: Comparison) -> list[str]:
    """The sentences; the first is the verdict."""
    sentences = [headline(comparison), _measured_on(comparison)]
    if len(comparison.rows) > 1:
        sentences.append(_by_benchmark(comparison))
    if len(comparison.averages) > 1:
        sentences.append(_without(comparison.averages[1]))
    return [*sentences, *judge(comparison.rows), seeds(comparison)]


def headline(comparison: Comparison) -> str:
    """State the verdict on the first average, or on the only benchmark."""
    a, b = comparison.a.name, comparison.b.name
    one = (comparison.averages or comparison.rows)[0]
    if isinstance(one, Row) and len(comparison.rows) > 1:  # two kinds of MMLU
        return (
            f"{a} and {b} on {listing(row.title for row in comparison.rows)}: see each by itself."
        )
    what = one.title if isinstance(one, Row) else f"the {one.label}"
    return one_line(f"{_claim(a, b, one, what)} ({_numbers(one)}).") + _missed(one)


def _claim(a: str, b: str, one: Row | Average, what: str) -> str:
    if one.verdict == NONE:
        shown = f"{points(one, one.difference)} {one.unit}"
        return f"No difference shown between {a} and {b} on {what}: {shown}"
    how = "better" if one.verdict == GAIN else "worse"
    return f"{a} is {how} than {b} on {what} by {amount(one, one.difference)} {one.unit}"


def _numbers(one: Row | Average) -> str:
    p = p_text(one.test.p)
    relation = p.replace("<", "< ") if p.startswith("<") else f"= {p}"
    return f"95% interval {interval(one)}, p {relation}"


def _missed(one: Row | Average) -> str:
    if one.verdict != NONE or not one.detectable > 0:
        return ""
    return (
        " That does not show that there is none: a true difference of "
        f"{amount(one, one.detectable)} {one.unit} would be missed one time in five, a smaller "
        "one more often."
    )


def _measured_on(comparison: Comparison) -> str:
    rows = comparison.rows
    items = sum(row.n for row in rows)
    split = {"test": "Test split", "dev": "Development split"}.get(
        comparison.split, f"Split {one_line(comparison.split, 20)}"
    )
    text = f"{split}, {count(items)} items of {plural(len(rows), 'benchmark')}"
    subsets = [f"{r.title} {count(r.n)} of {count(r.full or r.n)}" for r in rows if r.subset]
    if len(subsets) == len(rows) > MAX_SUBSETS:
        text += "; a SUBSET of each, not the published benchmark"
    elif subsets:
        text += f"; SUBSETS: {listing(subsets)}"
    if comparison.split == "dev":
        text += "; scores to choose by, not to report"
    return text + "."


def _by_benchmark(comparison: Comparison) -> str:
    rows = comparison.rows
    parts = []
    for kind, words in ((GAIN, "better on"), (LOSS, "worse on")):
        if named := [row.title for row in rows if row.verdict == kind]:
            parts.append(f"{words} {listing(named)}")
    left = sum(row.verdict == NONE for row in rows)
    if left:
        where = f"the other {left if left > 1 else 'one'}"
        if left == len(rows):
            where = f"any of {len(rows)}"
        parts.append(f"no difference shown on {where}")
    return f"By benchmark, {len(rows)} tests held to 5% together (Holm): {', '.join(parts)}."


def _without(one: Row | Average) -> str:
    words = {GAIN: "better by", LOSS: "worse by", NONE: "no difference shown,"}[one.verdict]
    text = (points if one.verdict == NONE else amount)(one, one.difference)
    return f"Without AlpacaEval: {words} {text} points ({_numbers(one)})."


def judge(rows: Sequence[Row]) -> list[str]:
    """Name the judge of AlpacaEval, if it was compared: a sentence, or none."""
    for row in rows:
        if row.name == JUDGED:
            named = row.entry.get("judge")
            name = one_line(str(named), 80) if named else "a judge that results.json does not name"
            metric = one_line(str(row.entry.get("metric")), 40)
            return [f"{row.title} is judged by {name} ({metric}); another judge, another number."]
    return []


def seeds(comparison: Comparison) -> str:
    """Say if training seeds are in the intervals: a sentence."""
    arms = (comparison.a, comparison.b)
    a, b = (len(arm.runs) for arm in arms)
    if a == b == 1:
        return (
            "One training run each: the intervals cover the choice of questions and NOT the "
            "training seed; another run of the same recipe may differ by more."
        )
    if min(a, b) == 1:
        single, several = (arms[0], b) if a == 1 else (arms[1], a)
        text = (
            f"{single.name} is one run: the intervals cover questions and the training seed of "
            f"the other side ({several} runs), NOT the training seed of {single.name}, if it was "
            "trained."
        )
    else:
        text = f"The intervals cover questions and training seeds ({a} and {b} runs)."
    if min(n for n in (a, b) if n > 1) < FEW_RUNS:
        text += " Two runs say little about seeds: such intervals are rough."
    return text
