"""What the pairs look like: who wrote them, how long they are, and some of them to read.

Everything in a pair was written by a model or a stranger. It leaves here as plain text; the page
escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from deltalearn.report.figures import Row, dot, rows_figure
from deltalearn.report.summary import STUDENT
from deltalearn.report.view import Pairing, RunView
from deltalearn.util.text_format import Measure, count, one_line, share

SAMPLES = 8  # per pairing, fewer when there are many pairings
SAMPLES_IN_ALL = 64
TEXT_LIMIT = 1500  # characters of one text
TURNS = 6  # of one prompt
ANSWERED = 6  # questions shown with the answers of all students
GOLD_LIMIT = 200  # characters of a reference
TEXTS = ["prompt", "chosen", "rejected"]
FACTS = ["prompt_id", "sample"]
FACTS += [f"{side}_{fact}" for side in TEXTS[1:] for fact in ("tokens", "finish_reason")]


def delta_figures(view: RunView) -> list[dict[str, Any]]:
    """Per metric: each pairing's two generators, and the student they are to teach.

    Pairings of models without scores, those behind a server, are left out.
    """
    scored = [p for p in view.pairings if all(map(view.is_scored, (p.chosen, p.rejected)))]
    return [
        {"title": measure.label, "svg": _delta_figure(view, scored, measure, f"delta{i}")}
        for i, measure in enumerate(view.main)
        if scored
    ]


def _delta_figure(view: RunView, pairings: Sequence[Pairing], measure: Measure, name: str) -> Any:
    rows, told = [], []
    for pairing in pairings:
        chosen, rejected = (
            view.scores(side)[measure.key] for side in (pairing.chosen, pairing.rejected)
        )
        delta = chosen["mean"] - rejected["mean"]
        note = f"delta {measure.difference(delta)}"
        title = f"{one_line(pairing.chosen, 16)} over {one_line(pairing.rejected, 16)}"
        dots = [dot(rejected, measure, filled=False), dot(chosen, measure)]
        rows.append(Row(title, note, None, dots, link=True))
        told.append(f"{title}: {note}")
    student = view.base[measure.key]["mean"]
    description = (
        f"Scores of the models behind the pairs in {measure.label}; the student has "
        f"{measure.score(student)}. {'; '.join(told)}"
    )
    axis = f"{measure.label}, {'%' if measure.scale == 100 else measure.unit}"
    line = (student * measure.scale, "student")
    return rows_figure(name, rows, line, None, axis, description)


def generator_rows(view: RunView) -> list[dict[str, Any]]:
    """Every weak model and the student with their scores."""
    rows = []
    for name in [*view.summary["teachers"], STUDENT] if view.main else []:
        scored = [(m, view.scores(name)[m.key]) for m in view.main]
        cells = [(m.score(entry["mean"]), m.score_interval(entry)) for m, entry in scored]
        rows.append({"name": name, "cells": cells})
    return rows


def pairing_rows(view: RunView) -> list[dict[str, Any]]:
    """Every pairing with its counts and the lengths of its two sides."""
    return [_pairing_row(pairing) for pairing in view.pairings]


def _pairing_row(pairing: Pairing) -> dict[str, Any]:
    counts = pairing.counts
    row: dict[str, Any] = {
        "chosen": pairing.chosen,
        "rejected": pairing.rejected,
        "arms": pairing.arms,
        "candidates": count(counts["candidates"]),
        "pairs": count(counts["pairs"]),
        "kept": share(counts["pairs"], counts["candidates"]),
        "lengths": None,
    }
    columns = ["chosen_tokens", "rejected_tokens"]
    table = pq.read_table(pairing.path, columns=columns) if pairing.path.is_file() else None
    if table is not None and table.num_rows:
        chosen, rejected = (table[c].to_numpy().astype(np.int64) for c in columns)
        parts = {
            "longer": int((chosen > rejected).sum()),
            "equal": int((chosen == rejected).sum()),
            "shorter": int((chosen < rejected).sum()),
        }
        row["lengths"] = {
            "chosen": f"{chosen.mean():,.1f}",
            "rejected": f"{rejected.mean():,.1f}",
            "parts": [
                {"name": n, "share": share(v, len(chosen)), "width": f"{100 * v / len(chosen):.2f}"}
                for n, v in parts.items()
            ],
        }
    return row


def samples(view: RunView) -> list[dict[str, Any]]:
    """Some pairs of every pairing, evenly spread over the table and the same at every writing."""
    wanted = max(1, min(SAMPLES, SAMPLES_IN_ALL // max(1, len(view.pairings))))
    found = []
    for pairing in view.pairings:
        total = pq.read_metadata(pairing.path).num_rows if pairing.path.is_file() else 0
        places = [total * (2 * i + 1) // (2 * wanted) for i in range(wanted)]
        places = sorted(set(places)) if total else []
        rows = [_sample(place, row) for place, row in _rows_at(pairing, places)]
        found.append({"pairing": pairing, "total": count(total), "rows": rows})
    return found


def _rows_at(pairing: Pairing, places: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows at sorted `places`; the table is streamed, for it may not fit in memory."""
    if not places:
        return
    start, left = 0, list(places)
    file = pq.ParquetFile(pairing.path)
    for batch in file.iter_batches(batch_size=4096, columns=[*TEXTS, *FACTS]):
        while left and left[0] < start + batch.num_rows:
            place = left.pop(0)
            yield place, batch.slice(place - start, 1).to_pylist()[0]
        if not left:
            return
        start += batch.num_rows


def _sample(place: int, row: dict[str, Any]) -> dict[str, Any]:
    turns = row["prompt"]
    hidden = max(0, len(turns) - TURNS)
    # The last turns ask the question; the first often holds the system prompt.
    shown = turns if not hidden else [turns[0], *turns[-(TURNS - 1) :]]
    return {
        "number": count(place + 1),
        "id": row["prompt_id"],
        "sample": row["sample"],
        "turns": [{"role": turn["role"], **_text(turn["content"])} for turn in shown],
        "hidden": hidden,
        "answers": [
            {
                "side": side,
                "tokens": count(row[f"{side}_tokens"]),
                "cut": row[f"{side}_finish_reason"] == "length",
                "finish_reason": row[f"{side}_finish_reason"],
                **_text("\n".join(turn["content"] for turn in row[side])),
            }
            for side in ("chosen", "rejected")
        ],
    }


def student_answers(view: RunView) -> dict[str, Any] | None:
    """Some questions of a benchmark with the answers of the student, untouched and tuned.

    Of the first benchmark of which answers are kept; the first seed of each arm. Questions are
    evenly spread over the items, not picked.
    """
    scores = view.path / "scores"
    seed = view.summary["seeds"][0]
    who = {"base": scores / "models" / STUDENT}
    who |= {arm.name: scores / "arms" / arm.name / f"seed-{seed}" for arm in view.arms}
    for key, entry in view.summary["benchmarks"].items():
        files = {name: folder / "items" / f"{key}.parquet" for name, folder in who.items()}
        if entry["kind"] not in ("reference", "text", "judged"):
            continue
        if not all(file.is_file() for file in files.values()):
            continue
        tables = {name: _outputs(file) for name, file in files.items()}
        shared = [i for i, row in tables["base"].items() if row["output"]]
        shared = [i for i in shared if all(i in table for table in tables.values())]
        if not shared:
            continue
        places = {len(shared) * (2 * n + 1) // (2 * ANSWERED) for n in range(ANSWERED)}
        rows = [
            {
                "id": shared[at],
                "question": _text(tables["base"][shared[at]]["prompt"]),
                "gold": one_line(tables["base"][shared[at]]["gold"], GOLD_LIMIT),
                "answers": [
                    {"name": name, **_answer(table[shared[at]])} for name, table in tables.items()
                ],
            }
            for at in sorted(places)
        ]
        return {"title": entry["title"], "rows": rows, "total": count(len(shared)), "seed": seed}
    return None


def _outputs(file: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(file, columns=["id", "prompt", "output", "gold", "score"]).to_pylist()
    return {row["id"]: row for row in rows}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"score": f"{row['score']:.3g}", **_text(row["output"])}


def _text(text: str) -> dict[str, Any]:
    cropped = len(text) > TEXT_LIMIT
    note = f"cropped: {TEXT_LIMIT:,} of {len(text):,} characters" if cropped else None
    return {"text": text[:TEXT_LIMIT], "note": note}
