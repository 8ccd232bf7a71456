"""The books of a run: everything counted and dropped, and where everything came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby, islice
from typing import Any

from deltalearn.report.view import RunView
from deltalearn.util.text_format import count, duration, share

REJECTS = 3  # rejected prompts shown
KEPT = {"read", "prompts", "requests", "generated", "cached", "tokens", "candidates", "pairs"}
KEPT |= {
    "examples",
    "final_answers_removed",
    "transcripts",
    "altered_answers",
}  # counts that are no loss
KEPT |= {"special_token_answers", "assumed_ends", "cut_pairs"}
# Counts of the tune stage that tell how it ran, not what it dropped.
NOT_DROPS = {"steps", "resumed_at", "reference_scored", "last", "rows", "held_out", "best_step"}
MEANINGS = {
    "duplicates": "the same conversation a second time",
    "not selected": "beyond prompts.limit",
    "transcripts": "text of Human: and Assistant: that became turns",
    "final answers removed": "a last assistant turn cut off, the prompt kept",
    "errors": "requests that the engine could not answer",
    "missing": "no response to one side",
    "error": "an engine error on one side",
    "empty": "nothing but white space",
    "truncated": "cut off at max_tokens",
    "identical": "both answers the same text",
    "length difference": "chosen longer than rejected by more than pairs.max_length_difference",
    "too long": "prompt and answer exceed tune.max_length",
    "identical ids": "both answers the same tokens to the student",
    "refused": "the student's chat template does not take the prompt",
    "prompt too long": "the prompt leaves no room for an answer in tune.max_length",
    "identical after cut": "both answers the same tokens once cut to tune.max_length",
    "special token answers": "answers with text that is a control token to the student; kept",
    "assumed ends": "answers without a finish reason, taken to have ended; kept",
    "cut pairs": "both answers cut to tune.max_length, without their ends; kept",
    "altered answers": "answers that change on a round trip through the student's tokenizer; kept",
}


def count_tables(view: RunView) -> list[dict[str, Any]]:
    """A table per kind of stage: one row per stage, one column per count."""
    by_kind: dict[str, dict[str, Any]] = {}
    for stage, record in view.stages.items():
        kind, _, name = stage.partition("/")
        by_kind.setdefault(kind, {})[name] = record["counts"]
    tables = [
        _table("Prompts", "prompts", {"all": by_kind.get("prompts", {}).get("", {})}),
        _table("Responses", "model", by_kind.get("generate", {})),
        _table("Pairs", "pairing", by_kind.get("pairs", {})),
        _table("Training examples", "arm", _by_arm(by_kind.get("tune", {}))),
    ]
    return [table for table in tables if table["rows"]]


def _by_arm(stages: Mapping[str, Any]) -> dict[str, Any]:
    """One row per arm where its seeds agree (they always should), else one per seed."""
    rows: dict[str, Any] = {}
    for arm, members in groupby(stages, key=lambda name: name.rpartition("/")[0]):
        counts = {m: {k: v for k, v in stages[m].items() if k not in NOT_DROPS} for m in members}
        same = all(value == next(iter(counts.values())) for value in counts.values())
        rows |= {arm: next(iter(counts.values()))} if same else counts
    return rows


def _table(title: str, head: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    flat = {name: _flat(counts) for name, counts in rows.items() if counts}
    columns = list(dict.fromkeys(column for counts in flat.values() for column in counts))
    return {
        "title": title,
        "head": head,
        "columns": [column.replace("_", " ") for column in columns],
        "rows": [
            {
                "name": name.replace("_over_", " over ") if head == "pairing" else name,
                "cells": [_cell(column, counts) for column in columns],
                "sides": _sides(rows[name].get("dropped_by_side", {})),
            }
            for name, counts in flat.items()
        ],
        "meanings": [
            (label, MEANINGS[label])
            for column in columns
            if (label := column.replace("_", " ")) in MEANINGS
        ],
    }


def _flat(counts: Mapping[str, Any]) -> dict[str, int]:
    """Counts and dropped counts in one mapping; sides are told in words instead."""
    own = {k: v for k, v in counts.items() if isinstance(v, int)}
    return {**own, **counts.get("dropped", {})}


def _cell(column: str, counts: Mapping[str, int]) -> dict[str, Any]:
    value = counts.get(column)
    if value is None:
        return {"text": "–", "share": "", "style": "zero"}
    whole = next((counts[k] for k in ("read", "requests", "candidates", "pairs") if k in counts), 0)
    lost = column not in KEPT and value > 0
    return {
        "text": count(value),
        "share": share(value, whole) if lost else "",
        "style": "lost" if lost else "zero" if not value else "",
    }


def _sides(by_side: Mapping[str, int]) -> str:
    """`empty: chosen 6, rejected 5; truncated: chosen 3`."""
    parts: dict[str, list[str]] = {}
    for key, value in by_side.items():
        reason, _, side = key.partition(":")
        parts.setdefault(reason.replace("_", " "), []).append(f"{side} {count(value)}")
    return "; ".join(f"{reason}: {', '.join(sides)}" for reason, sides in parts.items())


def overlap(view: RunView) -> dict[str, Any] | None:
    """Evaluated items among the training prompts: a row for each set, and the first items."""
    found = view.summary["overlap"]
    if found is None:
        return None
    sets = found["sets"].items()
    columns = ["any", "exact", "8-gram", "13-gram"]
    return {
        "prompts": count(found["prompts"]),
        "columns": columns,
        "rows": [
            {
                "name": name,
                "items": count(one["items"]),
                "cells": [_cell(key, {key: one[key], "read": one["items"]}) for key in columns],
                "prompts": count(one["prompts"]),
            }
            for name, one in sets
        ],
        "first": [{"set": name, **entry} for name, one in sets for entry in one["first"]],
        "not_compared": list(found["not_compared"].items()),
    }


def first_rejects(view: RunView) -> list[dict[str, str]]:
    """The first rejected prompts: where and why."""
    path = view.path / "prompts.rejects.jsonl"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        rejects = [json.loads(line) for line in islice(lines, REJECTS)]
    return [{"where": str(r["where"])[:200], "reason": str(r["reason"])[:300]} for r in rejects]


def timings(view: RunView) -> list[dict[str, str]]:
    """Time by kind of stage, with a total."""
    seconds: dict[str, list[float]] = {}
    for stage, record in view.stages.items():
        seconds.setdefault(stage.partition("/")[0], []).append(record["seconds"])
    total = sum(map(sum, seconds.values()))
    rows = [
        {
            "name": kind,
            "stages": count(len(own)),
            "time": duration(sum(own)),
            "share": share(sum(own), total),
            "width": f"{100 * sum(own) / total if total else 0:.2f}",
        }
        for kind, own in seconds.items()
    ]
    whole = {"name": "all", "stages": count(len(view.stages)), "time": duration(total)}
    return [*rows, {**whole, "share": "", "width": "0"}]


def stage_rows(view: RunView) -> list[dict[str, str]]:
    """Every stage with its time and when it finished."""
    return [
        {"name": name, "time": duration(record["seconds"]), "finished": record["finished"]}
        for name, record in view.stages.items()
    ]


def facts(view: RunView) -> list[tuple[str, str]]:
    """Software, machine and settings that a reader needs to compare or repeat the run."""
    manifest, recipe = view.manifest, view.recipe
    tune = recipe["tune"]
    epochs = tune["epochs"] or 1
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    if tune["steps"] is not None:
        length = f"{count(tune['steps'])} steps"
    answers = recipe["generate"]
    return [
        ("run created", manifest["created"]),
        ("deltalearn", manifest["deltalearn"]),
        ("Python", manifest["python"]),
        *manifest["versions"].items(),
        *(("machine: " + key, str(value)) for key, value in manifest["machine"].items()),
        ("device, precision", f"{recipe['device']}, {recipe['dtype']}"),
        ("training seeds", ", ".join(map(str, manifest["seeds"]))),
        (
            "generation",
            f"temperature {answers['temperature']:g}, top_p {answers['top_p']:g}, at most "
            f"{count(answers['max_tokens'])} tokens, {answers['samples']} per prompt, "
            f"seed {answers['seed']}",
        ),
        (
            "tuning",
            f"{tune['method']}, learning rate {tune['lr']:g}, batches of {tune['batch_size']}, "
            f"{length} (an arm's own settings: see the recipe)",
        ),
        ("scores digest", view.summary["scores_digest"]),
    ]


def models(view: RunView) -> list[dict[str, str]]:
    """Every model with where it came from and the fingerprint of its weights."""
    return [
        {"name": name, "path": spec["path"], "fingerprint": spec["fingerprint"]}
        for name, spec in view.manifest["models"].items()
    ]


def recipe_text(view: RunView) -> str:
    """Text of recipe.yaml, as resolved."""
    path = view.path / "recipe.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
