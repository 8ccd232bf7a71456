"""Differences of two arms, benchmark by benchmark and on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltalearn.compare.result import Average, Row
from deltalearn.evaluate.matching import Matched, averages, counted_mmlu, title, weighted
from deltalearn.evaluate.tulu3.suite import MMLU
from deltalearn.stats.holm import holm
from deltalearn.stats.paired import FEW, compare, compare_mean


def compare_all(matched: Sequence[Matched]) -> tuple[list[Row], list[Average], list[str]]:
    """Both arms of all benchmarks.

    Args:
        matched: Each with two arms, A and B.

    Returns:
        A row per benchmark; averages of all that count and without AlpacaEval; notes.
    """
    rows = _adjusted([_row(one) for one in matched])
    means = [
        Average(
            **vars(compare_mean(weighted(parts))),
            label=label,
            benchmarks=tuple(m.name for m in parts),
            n=sum(len(m.ids) for m in parts),
        )
        for label, parts in averages(matched)
    ]
    notes = [note for one in matched for note in one.notes]
    if (variant := counted_mmlu(matched)) and len({m.name for m in matched}.intersection(MMLU)) > 1:
        notes.append(f"of the two MMLU tasks {title(variant)} counts in the averages")
    return rows, means, notes + _cautions(rows)


def _row(m: Matched) -> Row:
    pair = m.pair()
    sampling = pair.sampling
    a, b = pair.a.mean(axis=0), pair.b.mean(axis=0)
    return Row(
        **vars(compare(pair)),
        name=m.name,
        title=m.title,
        n=len(m.ids),
        strata=len(sampling.strata),
        clusters=len(sampling.unit_sizes) if sampling.clustered else None,
        unpaired_se=float(np.sqrt(sampling.variance(a)[0] + sampling.variance(b)[0])),
        correlation=pair.correlation,
        discordant=pair.discordant,
        constant=m.constant,
        entry=m.entry,
    )


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """With Holm's p values, over all benchmarks that have a p value."""
    tested = {row.name: row.test.p for row in rows if row.test.p is not None}
    adjusted = dict(zip(tested, map(float, holm(list(tested.values()))), strict=True))
    return [replace(row, holm=adjusted.get(row.name)) for row in rows]


def _cautions(rows: Sequence[Row]) -> list[str]:
    """Where the numbers are weaker than they look."""
    notes = []
    for row in rows:
        if row.constant is not None:
            notes.append(
                f"{row.title}: constant: tells nothing, every model has {row.constant:g} on every "
                "item"
            )
        elif row.test.interval_by is None:
            why = "all items differ alike" if row.se == 0 else "too few items"
            notes.append(f"{row.title}: no interval, {why} ({row.n:,} items)")
        if row.clusters is not None and row.clusters < FEW:
            notes.append(
                f"{row.title}: its {row.n:,} items come from {row.clusters} sources that are taken "
                "for a sample of sources; the interval is wide and rough (--no-clusters takes each "
                "item as drawn by itself)"
            )
    return notes
