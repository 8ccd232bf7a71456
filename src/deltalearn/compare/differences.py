"""Differences of two arms, benchmark by benchmark and on average."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deltalearn.compare.comparable import JUDGED, title
from deltalearn.compare.match import Matched
from deltalearn.compare.result import Average, Row, Test
from deltalearn.evaluate.tulu3.suite import ELEVEN, MMLU
from deltalearn.stats import bootstrap, difference, mcnemar, power, seeds
from deltalearn.stats.holm import holm
from deltalearn.stats.joint import joint
from deltalearn.stats.sampling import Sampling

FEW = 30  # degrees of freedom below which a bootstrap is too narrow and a t is taken
FAMILY = ("humaneval", "humanevalplus")  # two benchmarks on the same problems


@dataclass(frozen=True)
class Settings:
    """draws, seed: of the bootstrap. clustered: whether items of a cluster are taken as such.

    mmlu: the variant that counts in the average; default: CoT, if both are there.
    """

    draws: int = bootstrap.DRAWS
    seed: int = 0
    clustered: bool = True
    mmlu: str | None = None


def compare_all(
    matched: Sequence[Matched], settings: Settings
) -> tuple[list[Row], list[Average], list[str]]:
    """(a row per benchmark, averages of all and without AlpacaEval, notes)."""
    rows, draws = [], {}
    for one in matched:
        row, draws[one.name] = _row(one, settings)
        rows.append(row)
    rows = _adjusted(rows)
    variants = [m.name for m in matched if m.name in MMLU]
    variant = settings.mmlu or next((name for name in MMLU if name in variants), None)
    counted = [m for m in matched if m.name not in MMLU or m.name == variant]
    others = [m for m in counted if m.name != JUDGED]
    averages = [_average(counted, draws, settings)] if len(counted) > 1 else []
    if 1 < len(others) < len(counted):
        label = f"{_label([m.name for m in others])} without AlpacaEval"
        averages.append(replace(_average(others, draws, settings), label=label))
    notes = [note for one in matched for note in one.notes]
    if len(variants) > 1:
        notes.append(f"of the two MMLU tasks {title(variant)} counts in the averages")
    return rows, averages, notes + _cautions(rows)


def _row(m: Matched, settings: Settings) -> tuple[Row, np.ndarray | None]:
    """A benchmark, and the draws of its difference for the averages, None if it has none."""
    sampling = m.sampling(clustered=settings.clustered)
    a, b = m.a.mean(axis=0), m.b.mean(axis=0)
    draws = _resample(m.name, a - b, sampling, settings)
    single = len(m.a) == len(m.b) == 1
    binary = single and mcnemar.is_binary(a, b)
    counts = mcnemar.discordant(a, b) if binary else None
    estimate = seeds.difference(m.a, m.b, sampling)
    if counts and not m.macro and not sampling.clustered:
        test = _by_counts(*counts, len(m.ids))
    else:
        by_t = sampling.clustered or not single
        test = _test(estimate, draws, by_t=by_t, units=len(sampling.unit_sizes))
    row = Row(
        **_numbers(estimate, sampling.mean(a), sampling.mean(b)),
        test=test,
        name=m.name,
        title=title(m.name),
        n=len(m.ids),
        strata=len(sampling.strata),
        clusters=len(sampling.unit_sizes) if sampling.clustered else None,
        unpaired_se=float(np.sqrt(sampling.variance(a)[0] + sampling.variance(b)[0])),
        correlation=difference.correlation(a, b),
        discordant=counts,
        entry=m.entry,
    )
    return row, draws


def _average(
    parts: Sequence[Matched], draws: Mapping[str, np.ndarray | None], settings: Settings
) -> Average:
    """The mean of several benchmarks, all resampled together, those on the same problems as one."""
    blocks, drawn = [], []
    family = [m for m in parts if m.name in FAMILY]
    family = family if len(family) > 1 else []
    for m in parts:
        if m in family:
            continue
        blocks.append((m.a, m.b, m.sampling(clustered=settings.clustered), 1 / len(parts)))
        drawn.append((1 / len(parts), draws[m.name]))
    if family:
        ids, a = joint([(m.ids, m.a) for m in family])
        _, b = joint([(m.ids, m.b) for m in family])
        weight, sampling = len(family) / len(parts), Sampling(len(ids))
        blocks.append((a, b, sampling, weight))
        d = a.mean(axis=0) - b.mean(axis=0)
        drawn.append((weight, _resample(" ".join(FAMILY), d, sampling, settings)))
    a, b = (np.concatenate([block[side] for block in blocks], axis=1) for side in (0, 1))
    sampling = Sampling.together([(own, weight) for _, _, own, weight in blocks])
    estimate = seeds.difference(a, b, sampling)
    by_t = not len(a) == len(b) == 1 or any(own is None for _, own in drawn)
    total = None if by_t else sum(weight * own for weight, own in drawn)
    names = tuple(m.name for m in parts)
    return Average(
        **_numbers(estimate, sampling.mean(a.mean(axis=0)), sampling.mean(b.mean(axis=0))),
        test=_test(estimate, total, by_t=by_t, units=len(sampling.unit_sizes)),
        label=_label(names),
        benchmarks=names,
        n=sum(len(m.ids) for m in parts),
    )


def _label(names: Sequence[str]) -> str:
    ten = set(ELEVEN) - {JUDGED}
    whole = ten <= set(names) and any(name in MMLU for name in names)
    label = f"average of {'the ' if whole else ''}{len(names)}"
    return label


# -- tests ---------------------------------------------------------------------------------------


def _by_counts(b: int, c: int, n: int) -> Test:
    """0/1 scores of single runs on independent items: the two counts say all."""
    return Test(*mcnemar.interval(b, c, n), "score", mcnemar.p_value(b, c), "McNemar")


def _test(
    estimate: seeds.SeedEstimate, draws: np.ndarray | None, *, by_t: bool, units: int
) -> Test:
    """By the bootstrap; by t if asked for (clusters, several runs) or where units are few."""
    if not math.isfinite(estimate.se):
        return Test(None, None, None, None, None)
    if estimate.se == 0:  # all items differ alike, most likely not at all: no spread to go by
        p = 1.0 if estimate.value == 0 else min(1.0, 2.0 ** (1 - units))
        return Test(None, None, None, p, "signs")
    if by_t or draws is None or estimate.df < FEW:
        return Test(*map(float, estimate.interval()), "t", float(estimate.p_value()), "t")
    return Test(*bootstrap.percentile(draws), "bootstrap", bootstrap.p_value(draws), "bootstrap")


def _numbers(estimate: seeds.SeedEstimate, a: float, b: float) -> dict[str, Any]:
    multiple = power.multiple(df=float(estimate.df)) if estimate.df > 0 else math.nan
    parts = {"items": estimate.items, "seeds_a": estimate.seeds_a, "seeds_b": estimate.seeds_b}
    return {
        "a": float(a),
        "b": float(b),
        "difference": float(estimate.value),
        "se": float(estimate.se),
        "df": float(estimate.df),
        "detectable": float(multiple * estimate.se),
        "variance": {name: float(value) for name, value in parts.items()},
    }


def _resample(
    name: str, d: np.ndarray, sampling: Sampling, settings: Settings
) -> np.ndarray | None:
    """(draws,) of a difference; the random stream is the name's own, whatever else is compared.

    None where a stratum has but one item or cluster. Swapped arms give the same draws, mirrored.
    """
    if not bootstrap.can_resample(sampling):
        return None
    seed = [settings.seed, zlib.crc32(name.encode())]
    differing = d[d != 0]
    sign = -1.0 if len(differing) and differing[0] < 0 else 1.0
    return sign * bootstrap.resample(sign * d[:, None], sampling, settings.draws, seed)[:, 0]


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """With Holm's p values, over all benchmarks that have a p value."""
    tested = [row for row in rows if row.test.p is not None]
    values = zip(tested, holm([row.test.p for row in tested]), strict=True)
    adjusted = {row.name: float(value) for row, value in values}
    return [replace(row, holm=adjusted.get(row.name)) for row in rows]


def _cautions(rows: Sequence[Row]) -> list[str]:
    """Where the numbers are weaker than they look."""
    notes = []
    for row in rows:
        if row.test.interval_by is None:
            why = "all items differ alike" if row.se == 0 else "too few items"
            notes.append(f"{row.title}: no interval, {why} ({row.n:,} items)")
        if row.clusters is not None and row.clusters < FEW:
            notes.append(
                f"{row.title}: its {row.n:,} items come from {row.clusters} sources that are taken "
                "for a sample of sources; the interval is wide and rough (--no-clusters takes each "
                "item as drawn by itself)"
            )
    return notes
