"""Whether two evaluations may be set against each other: the same questions asked the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltalearn.comparing.runs import Arm, Run
from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, MMLU
from deltalearn.files import canonical_json
from deltalearn.report.wording import listing, one_line

# What moves scores by itself, of a benchmark. `limit` is of the whole evaluation.
ASKED = (
    "metric", "shots", "chat", "max_tokens", "stops", "samples", "temperature", "context",
)  # fmt: skip
WORTH_A_NOTE = ("backend", "data")  # of an evaluation: may move scores a little
SHOWN = 8  # lines of an error
JUDGED = "alpaca_eval"


def title(name: str) -> str:
    """How a benchmark is called in tables."""
    return BY_NAME[name].title if name in BY_NAME else one_line(name, 24)


def shared_benchmarks(a: Arm, b: Arm, wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(benchmarks scored in every run, in the suite's order; notes on what is left out)."""
    runs = [*a.runs, *b.runs]
    some = {name for run in runs for name in run.benchmarks}
    every = {name for name in some if all(name in run.benchmarks for run in runs)}
    for_a, for_b = ({n for n in MMLU for r in arm.runs if n in r.benchmarks} for arm in (a, b))
    if for_a and for_b and not for_a & for_b:
        raise UserError(
            f"MMLU was asked as {_titles(for_a)} of {a.name} and as {_titles(for_b)} of {b.name}: "
            "two tasks, whose scores differ by points for the same model; evaluate both with one"
        )
    if wanted:
        if unknown := [name for name in wanted if name not in some]:
            raise UserError(f"{unknown[0]}: not scored here; there are {listing(_order(some))}")
        if missing := [name for name in wanted if name not in every]:
            raise UserError(f"{missing[0]}: {_where(runs, missing[0])}; evaluate it there too")
        return _order(set(wanted)), []
    if not every:
        raise UserError(
            f"no benchmark is scored on both sides: {a.name} has {_titles(_of(a))}, {b.name} has "
            f"{_titles(_of(b))}"
        )
    notes = [f"{title(name)} is left out: {_where(runs, name)}" for name in _order(some - every)]
    return _order(every), notes


def check(a: Arm, b: Arm, benchmarks: Sequence[str], *, allow_different: bool) -> list[str]:
    """Notes on what differs and may; UserError on what may not.

    allow_different: let the settings of ASKED and the limit differ, with a note. Splits, judges
    and ways of averaging may never differ.
    """
    runs = [*a.runs, *b.runs]
    if found := _differing(runs, {run.directory: run.results.get("split") for run in runs}):
        raise UserError(
            f"different splits: {found}; items of one are not in the other, evaluate both on one"
        )
    for name in benchmarks:
        judges = {run.directory: run.benchmarks[name].get("judge") for run in runs}
        if found := _differing(runs, judges):
            raise UserError(
                f"{title(name)}: two judges: {found}; their win rates differ by points for the "
                "same answers, have both judged by one (or choose other benchmarks: --benchmark)"
            )
        means = {run.directory: run.benchmarks[name].get("aggregation") for run in runs}
        if found := _differing(runs, means):
            raise UserError(f"{title(name)}: averaged in two ways: {found}; evaluate it again")
    mismatches = _mismatches(runs, benchmarks)
    if mismatches and not allow_different:
        lines = mismatches[:SHOWN]
        if len(mismatches) > SHOWN:
            lines.append(f"and {len(mismatches) - SHOWN} more")
        raise UserError(
            "these scores were not measured alike:\n  "
            + "\n  ".join(lines)
            + "\nevaluate both with the same settings, or compare them all the same with "
            "--allow-different-settings"
        )
    notes = [f"NOT MEASURED ALIKE: {line}" for line in mismatches]
    for key in WORTH_A_NOTE:
        if found := _differing(runs, {run.directory: run.results.get(key) for run in runs}):
            notes.append(f"different {key}: {found}")
    return notes + _same_weights(a, b)


def _mismatches(runs: Sequence[Run], benchmarks: Sequence[str]) -> list[str]:
    lines = []
    if found := _differing(runs, {run.directory: run.results.get("limit") for run in runs}):
        lines.append(f"limit {found}")
    for name in benchmarks:
        for key in ASKED:
            values = {run.directory: run.benchmarks[name].get(key) for run in runs}
            if found := _differing(runs, values):
                lines.append(f"{title(name)}: {key} {found}")
    return lines


def _differing(runs: Sequence[Run], values: dict[Any, Any]) -> str:
    """`512 in evals/a, 1024 in evals/b`: two that differ; empty if all are the same."""
    first, *others = (run.directory for run in runs)
    for other in others:
        if canonical_json(values[first]) != canonical_json(values[other]):
            told = (one_line(_plain(values[place]), 60) for place in (first, other))
            return f"{next(told)} in {first}, {next(told)} in {other}"
    return ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _same_weights(a: Arm, b: Arm) -> list[str]:
    both = {r.identity for r in a.runs} & {r.identity for r in b.runs} - {None}
    return ["the same weights stand in both arms"] if both else []


def _where(runs: Sequence[Run], name: str) -> str:
    without = [str(run.directory) for run in runs if name not in run.benchmarks]
    return f"it has no score in {listing(without)}"


def _of(arm: Arm) -> set[str]:
    return {name for run in arm.runs for name in run.benchmarks}


def _titles(names: set[str]) -> str:
    return listing(title(name) for name in _order(names)) if names else "none"


def _order(names: set[str]) -> list[str]:
    known = [benchmark.name for benchmark in ALL if benchmark.name in names]
    return known + sorted(names - set(known))
