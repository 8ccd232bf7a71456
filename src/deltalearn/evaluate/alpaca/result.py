"""What is left of a judged model: a row per instruction, a summary, a line in a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import Annotation, one_judge
from deltalearn.evaluate.alpaca.bootstrap import DRAWS, bootstrap
from deltalearn.evaluate.alpaca.length import Judged, length_controlled
from deltalearn.evaluate.alpaca.length_data import Sides
from deltalearn.evaluate.alpaca.winrate import WinRate, win_rate
from deltalearn.util.files import digest

FULL_N = 805  # instructions of AlpacaEval


def item_rows(annotations: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Rows for items/alpaca_eval.parquet, one per scored comparison.

    score: preference - 1, in [0, 1]; their mean is the raw win rate. cluster: the source of the
    instruction. output, gold: the model's and the reference's answer, of which the length control
    can be computed anew (`Judged.of`). Unread replies have no row. UserError if judges are mixed.
    """
    one_judge(annotations)
    return [
        {
            "id": digest(a.instruction)[:16],
            "stratum": "",
            "cluster": a.pair.dataset,
            "score": a.score,
            "prompt": a.instruction,
            "output": a.pair.output_2,
            "extracted": f"{a.verdict.preference:.10f}",
            "gold": a.pair.output_1,
        }
        for a in annotations
        if a.scored
    ]


def summary(
    annotations: Sequence[Annotation],
    sides: Sides | None = None,
    *,
    full_n: int = FULL_N,
    instructions: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The benchmark's entry in results.json, with the details under "alpaca_eval".

    score: the length-controlled win rate in [0, 1], full if there are side files, else minimal;
    `metric` says which. stderr: of the bootstrap that refits. full_n: instructions of the whole
    set. instructions: that set in the order of the references, which the full length control needs
    if the annotations are a subset.
    UserError if judges or reference models are mixed, or nothing could be read.
    """
    judge, reference = one_judge(annotations), one_reference(annotations)
    raw = win_rate(annotations)
    judged = Judged.from_annotations(annotations, instructions)
    controlled = length_controlled(judged, sides)
    rates = bootstrap({"model": judged}, sides, draws=draws, seed=seed)["model"]
    plain = rates.length_controlled
    details = {
        "judge": asdict(judge) | {"shown": judge.shown},
        "reference": reference,
        "win_rate": asdict(raw) | {"discrete": raw.discrete},
        "length_controlled": asdict(controlled)
        | {"maximum_likelihood": plain.point, "interval": plain.interval, "draws": draws},
        "sides": dict(sides.sha256) if sides else None,
        "comparisons": counts(annotations),
    }
    return {
        "score": controlled.win_rate,
        "metric": controlled.name,
        "aggregation": "mean",
        "n": raw.n,
        "full_n": full_n,
        "subset": len(annotations) < full_n,
        "stderr": plain.standard_error,
        "notes": _notes(raw, details["comparisons"], controlled.notes, controlled.name),
        "judge": judge.shown,
        "alpaca_eval": details,
    }


def counts(annotations: Sequence[Annotation]) -> dict[str, Any]:
    """How judging went.

    faults: unread replies by kind. unasked: equal answers. imitations: pairs with a delimiter of
    the prompt in their texts. shown_first: mean preference for the answer shown first, 0.5 without
    position bias; None if the order is not known.
    """
    faults = Counter(a.verdict.fault.split(":")[0] for a in annotations if a.verdict.fault)
    known = [
        a for a in annotations if a.scored and a.verdict.asked and a.verdict.swapped is not None
    ]
    first = [a.score if a.verdict.swapped else 1 - a.score for a in known]
    return {
        "faults": dict(faults),
        "unasked": sum(not a.verdict.asked for a in annotations),
        "imitations": sum(bool(a.verdict.marks) for a in annotations),
        "shown_first": sum(first) / len(first) if first else None,
    }


def one_reference(annotations: Sequence[Annotation]) -> str:
    """The model that wrote the reference answers. UserError if there are several."""
    names = sorted({a.pair.generator_1 for a in annotations})
    if len(names) > 1:
        raise UserError(
            f"compared with several reference models ({', '.join(names)}); a win rate has one"
        )
    return names[0]


def comparison_table(
    models: Mapping[str, Sequence[Annotation]],
    sides: Sides | None = None,
    *,
    instructions: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per model, rates in [0, 1], all of one judge against one reference.

    instructions: as for `summary`; by default the order of the first model's annotations.
    UserError if they were judged by two judges, against two references or on other instructions;
    an instruction without a preference for one model counts for none.
    """
    everything = [a for annotations in models.values() for a in annotations]
    judge, reference = one_judge(everything), one_reference(everything)
    shared = _shared(models)
    order = instructions or [a.instruction for a in next(iter(models.values()))]
    judged = {name: Judged.from_annotations(rows, order) for name, rows in shared.items()}
    rates = bootstrap(judged, sides, draws=draws, seed=seed)
    table = []
    for name, rows in shared.items():
        raw, controlled = win_rate(rows), length_controlled(judged[name], sides)
        table.append(
            {
                "model": name,
                "judge": judge.shown,
                "reference": reference,
                "n": raw.n,
                "left_out": len(models[name]) - raw.n,
                "win_rate": raw.win_rate,
                "standard_error": raw.standard_error,
                controlled.name: controlled.win_rate,
                f"{controlled.name}: bootstrap standard error": rates[
                    name
                ].length_controlled.standard_error,
                "wins": raw.wins,
                "losses": raw.losses,
                "ties": raw.ties,
                "mean_length": raw.mean_length,
            }
        )
    return table


def _shared(models: Mapping[str, Sequence[Annotation]]) -> dict[str, list[Annotation]]:
    """Each model's annotations of the instructions scored for all, in the first's order."""
    first = next(iter(models))
    order = [a.instruction for a in models[first]]
    for name, rows in models.items():
        if sorted(a.instruction for a in rows) != sorted(order):
            raise UserError(f"{name} was judged on other instructions than {first}")
    by_model = {name: {a.instruction: a for a in rows} for name, rows in models.items()}
    kept = [i for i in order if all(rows[i].scored for rows in by_model.values())]
    return {name: [rows[i] for i in kept] for name, rows in by_model.items()}


def _notes(raw: WinRate, made: dict[str, Any], control: Sequence[str], name: str) -> list[str]:
    notes = [
        f"{name} win rate; its stderr is a bootstrap over instructions that refits by maximum "
        "likelihood",
        *control,
    ]
    if raw.unscored:
        told = ", ".join(f"{number} {kind}" for kind, number in made["faults"].items())
        notes.append(f"{raw.unscored} replies of the judge have no preference ({told}): left out")
    if made["imitations"]:
        notes.append(f"{made['imitations']} pairs have delimiters of the judge's prompt in them")
    return notes
