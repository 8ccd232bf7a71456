"""Whether two evaluations may be set against each other: the same questions asked the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.arms import Arm, Run
from deltalearn.evaluate.entries import Entry
from deltalearn.evaluate.matching import title
from deltalearn.evaluate.tulu3.suite import ALL, MMLU
from deltalearn.util.files import canonical_json
from deltalearn.util.text_format import listing, one_line

# What moves scores by itself, of a benchmark. `limit` is of the whole evaluation.
ASKED = (
    "metric", "shots", "chat", "max_tokens", "reasoning_tokens", "stops", "samples", "temperature",
)  # fmt: skip
WORTH_A_NOTE = ("backend", "data")  # of an evaluation: may move scores a little
RAN_WITH = ("dtype", "arguments", "template", "day")  # of a benchmark: likewise
CUT = re.compile("^the context left .* less than the limit$|to fit the context$")  # of its notes
MAX_LINES = 8  # lines of an error


def shared_benchmarks(a: Arm, b: Arm, wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(benchmarks scored in every run, in the suite's order; notes on what is left out)."""
    runs = [*a.runs, *b.runs]
    of_a, of_b = ({name for run in arm.runs for name in run.benchmarks} for arm in (a, b))
    some = of_a | of_b
    every = {name for name in some if all(name in run.benchmarks for run in runs)}
    for_a, for_b = of_a.intersection(MMLU), of_b.intersection(MMLU)
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
            f"no benchmark is scored on both sides: {a.name} has {_titles(of_a)}, {b.name} has "
            f"{_titles(of_b)}"
        )
    notes = [f"{title(name)} is left out: {_where(runs, name)}" for name in _order(some - every)]
    return _order(every), notes


def check(a: Arm, b: Arm, benchmarks: Sequence[str], *, allow_different: bool) -> list[str]:
    """Notes on what differs and may; UserError on what may not.

    allow_different: let the settings of ASKED, the limit and a context that cut something differ,
    with a note. Splits, judges and ways of averaging may never differ.
    """
    runs = [*a.runs, *b.runs]
    if found := _differing(runs, [run.results.get("split") for run in runs]):
        raise UserError(
            f"different splits: {found}; items of one are not in the other, evaluate both on one"
        )
    for name in benchmarks:
        if found := _two_judges(runs, name):
            raise UserError(
                f"{title(name)}: two judges: {found}; their win rates differ by points for the "
                "same answers, have both judged by one (or choose other benchmarks: --benchmark)"
            )
        if found := _differing(runs, _values(runs, name, "aggregation")):
            raise UserError(f"{title(name)}: averaged in two ways: {found}; evaluate it again")
    mismatches = _mismatches(runs, benchmarks)
    if mismatches and not allow_different:
        lines = mismatches[:MAX_LINES]
        if len(mismatches) > MAX_LINES:
            lines.append(f"and {len(mismatches) - MAX_LINES} more")
        raise UserError(
            "these scores were not measured alike:\n  "
            + "\n  ".join(lines)
            + "\nevaluate both with the same settings, or compare them all the same with "
            "--allow-different-settings"
        )
    notes = [f"NOT MEASURED ALIKE: {line}" for line in mismatches]
    notes += _how_it_ran(runs, benchmarks) + _cuts(runs, benchmarks)
    if {run.identity for run in a.runs} & {run.identity for run in b.runs} - {None}:
        notes.append("the same weights stand in both arms")
    return notes


def _two_judges(runs: Sequence[Run], name: str) -> str:
    """In what two judges differ; empty if one judged all.

    Two prompts or protocols may go by one name, so that all that is known of a judge is compared.
    """
    if found := _differing(runs, _values(runs, name, "judge")):
        return found
    judges = [_judge(run.benchmarks[name]) for run in runs]
    known = [run for run, parts in zip(runs, judges, strict=True) if parts]
    judges = [parts for parts in judges if parts]
    told = [
        f"{one_line(field, 40)}: {differing}"
        for field in sorted({field for parts in judges for field in parts})
        if (differing := _differing(known, [parts.get(field) for parts in judges]))
    ]
    shown = one_line(str(runs[0].benchmarks[name].get("judge")), 60)
    return f"both called {shown}, but they differ in {', '.join(told)}" if told else ""


def _judge(entry: Entry) -> dict[str, Any]:
    """Everything that makes a judge the same one, as `JudgeIdentity` has it; empty if not kept."""
    details = entry.get("alpaca_eval")
    judge = details.get("judge") if isinstance(details, dict) else None
    if not isinstance(judge, dict):
        return {}
    try:
        how = json.loads(judge["how"])
    except (KeyError, TypeError, ValueError):
        return _flat(judge)
    return _flat({**judge, "how": how})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """`{"how": {"parser": "text"}}` as `{"how.parser": "text"}`, to name the least that differs."""
    if not isinstance(value, dict):
        return {name: value}
    inner = (_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items())
    return {key: part for parts in inner for key, part in parts.items()}


def _mismatches(runs: Sequence[Run], benchmarks: Sequence[str]) -> list[str]:
    lines = []
    if found := _differing(runs, [run.results.get("limit") for run in runs]):
        lines.append(f"limit {found}")
    for name in benchmarks:
        for key in ASKED:
            if found := _differing(runs, _values(runs, name, key)):
                lines.append(f"{title(name)}: {key} {found}")
        if _cuts(runs, [name]) and (found := _differing(runs, _values(runs, name, "context"))):
            lines.append(f"{title(name)}: context {found}, which cut prompts or answers")
    return lines


def _how_it_ran(runs: Sequence[Run], benchmarks: Sequence[str]) -> list[str]:
    """What differs and may, one line for all benchmarks in which it differs alike."""
    notes = []
    for key in WORTH_A_NOTE:
        if found := _differing(runs, [run.results.get(key) for run in runs]):
            notes.append(f"different {key}: {found}")
    uncut = [name for name in benchmarks if not _cuts(runs, [name])]
    for key, names in (("context", uncut), *((key, benchmarks) for key in RAN_WITH)):
        alike: dict[str, list[str]] = {}
        for name in names:
            if found := _differing(runs, _values(runs, name, key)):
                alike.setdefault(found, []).append(title(name))
        end = "; nothing is known to be cut by it" if key == "context" else ""
        for found, where in alike.items():
            of = f" ({listing(where)})" if len(where) < len(benchmarks) else ""
            notes.append(f"different {key}: {found}{of}{end}")
    return notes


def _cuts(runs: Sequence[Run], benchmarks: Sequence[str]) -> list[str]:
    """Notes of the evaluations on what did not fit into the context, with their places."""
    kept = [(name, run, run.benchmarks[name].get("notes")) for name in benchmarks for run in runs]
    return [
        f"{title(name)}: {one_line(note, 100)}, in {run.directory}"
        for name, run, notes in kept
        for note in (notes if isinstance(notes, list) else [])
        if isinstance(note, str) and CUT.search(note)
    ]


def _values(runs: Sequence[Run], name: str, key: str) -> list[Any]:
    return [run.benchmarks[name].get(key) for run in runs]


def _differing(runs: Sequence[Run], values: Sequence[Any]) -> str:
    """`512 in evals/a, 1024 in evals/b`: two that differ; empty if all are the same."""
    shown = [canonical_json(value) for value in values]
    for i, text in enumerate(shown):
        if text != shown[0]:
            return f"{_at(runs[0], values[0])}, {_at(runs[i], values[i])}"
    return ""


def _at(run: Run, value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return f"{one_line(text, 60)} in {run.directory}"


def _where(runs: Sequence[Run], name: str) -> str:
    without = [str(run.directory) for run in runs if name not in run.benchmarks]
    return f"it has no score in {listing(without)}"


def _titles(names: set[str]) -> str:
    return listing(title(name) for name in _order(names)) if names else "none"


def _order(names: set[str]) -> list[str]:
    known = [benchmark.name for benchmark in ALL if benchmark.name in names]
    return known + sorted(names - set(known))
