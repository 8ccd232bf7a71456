"""Import of answers into a store, from files of ours and of others."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats.answers import FoundAnswer, answers
from deltalearn.formats.files import Row
from deltalearn.formats.rows import files_line, rows
from deltalearn.lm.reasoning import is_unfinished, split_reasoning
from deltalearn.records import (
    Prompt,
    Request,
    Response,
    Unusable,
    conversation,
    ends_with_user,
    seen_messages,
)
from deltalearn.responses.export import COLUMNS
from deltalearn.responses.requests import request_key
from deltalearn.responses.store import ResponseStore
from deltalearn.util.files import canonical_json, digest

ROWS_PER_TRANSACTION = 2000  # rows stored together
IMPORTED = "imported:"  # before the name of a model that is known by its answers alone
HINT = (
    "known are an answer a row (prompt, response, model), pairs (prompt, chosen, rejected), "
    "several (instruction, generations, generation_models) and, with --column NAME for each "
    "model, a column of answers of each"
)
FORMER_NAMES = {"how": "settings", "thought": "reasoning"}  # columns of earlier exports


@dataclass(frozen=True)
class Answer:
    """An answer to be stored.

    Attributes:
        request: What was asked.
        response: What came of it.
        model: Name that the file gives its model.
        engine: That the file names, if it names one.
    """

    request: Request
    response: Response
    model: str
    engine: str = "imported"


@dataclass
class Imported:
    """Counts of what an import did with the rows of a file."""

    files: str | None = None  # those of a folder that were read
    read: int = 0
    added: int = 0
    there: int = 0  # in the store already, or twice in the file
    transcripts: int = 0  # answers to turns that were made of HH-RLHF's text
    assumed_ends: int = 0  # without a finish reason, taken to have ended
    models: Counter[str] = field(default_factory=Counter)  # of the answers added
    skipped: list[str] = field(default_factory=list)  # where and why, the first few
    skipped_count: int = 0

    def skip(self, row: Row, reason: str) -> None:
        """Count a row, or one cell of it, that has no answer to take."""
        self.skipped_count += 1
        if len(self.skipped) < 5:
            self.skipped.append(f"{row.where}: {reason}")


def import_responses(
    store: ResponseStore,
    source: str,
    *,
    split: str | None = None,
    models: Iterable[str] = (),
    name: str | None = None,
    ignore_columns: Collection[str] = (),
) -> Imported:
    """Take answers from a file, a folder or a hub data set into the store.

    Rows are recognised by their columns: those that `export` writes; an answer each (messages,
    prompt or instruction; response, output or completion; model or generator), as AlpacaEval writes
    it; preference pairs of TRL and Argilla (chosen, rejected, with or without chosen_model and
    rejected_model); distilabel's (instruction, generations, generation_models). A model that is
    known by its answers alone is called `imported:<name>`.

    Args:
        store: Where the answers go.
        source: As for `formats.rows.rows`.
        split: Of a hub data set, or of a folder whose names tell splits; default "train".
        models: Columns that hold answers, each of the model that it is called after, as in the
            authors' ladder of models.
        name: Name of the model, where the file has none.
        ignore_columns: Columns to leave out, though they may change the question.

    Returns:
        Counts, and the first rows that were skipped.

    Raises:
        UserError: If no row has an answer, or if `models` or `name` change nothing.
    """
    result, samples = Imported(files_line(source, split)), Counter[tuple[str, str]]()
    columns = tuple(models)
    _reject_unused_options(source, split, columns, name)
    pending: dict[str, Answer] = {}
    for row in rows(source, split, ignore=ignore_columns):
        result.read += 1
        if row.problem:
            result.skip(row, row.problem)
            continue
        try:
            if exported := _exported(row.value):
                taken = [_as_exported(exported)]
            else:
                taken = _taken(row, columns, name, samples, result)
        except Unusable as problem:
            result.skip(row, str(problem))
            continue
        for answer in taken:
            result.there += answer.request.key in pending
            pending.setdefault(answer.request.key, answer)
        if len(pending) >= ROWS_PER_TRANSACTION:
            _flush(store, pending, result)
    _flush(store, pending, result)
    if not result.added + result.there:
        example = f" ({result.skipped[0]})" if result.skipped else ""
        raise UserError(f"{source}: no answers to import in {result.read:,} rows{example}; {HINT}")
    return result


def _reject_unused_options(
    source: str, split: str | None, columns: tuple[str, ...], name: str | None
) -> None:
    """UserError if `columns` or `name` change nothing, before anything is stored.

    Reads the file up to the first row that needs them, which is mostly its first row.
    """
    if columns and name:
        raise UserError(
            f"{source}: --model-name {name!r} has no effect with --column, whose answers are those "
            "of the model that the column is called after; remove it"
        )
    names: set[str] = set()
    for row in rows(source, split) if columns or name else ():
        if row.problem:
            continue
        if exported := _exported(row.value):
            names.add(str(exported.get("model")))
            continue
        if columns:
            return
        found = _named_in(row.value)
        if "" in found:
            return
        names |= found
    if names:
        option = f"--column {columns[0]!r}" if columns else f"--model-name {name!r}"
        shown = ", ".join(sorted(names)[:5])
        raise UserError(
            f"{source}: {option} has no effect: every row names its models already ({shown}); "
            "remove it"
        )


def _named_in(value: dict[str, Any]) -> set[str]:
    """Names of the models of a row's answers, "" for one that has none."""
    try:
        return {answer.model for answer in answers(value) if not answer.problem}
    except Unusable:
        return set()


def _flush(store: ResponseStore, pending: dict[str, Answer], result: Imported) -> None:
    have = store.have(pending)
    new = [answer for key, answer in pending.items() if key not in have]
    by_engine: dict[str, list[tuple[Request, Response]]] = {}
    for answer in new:
        by_engine.setdefault(answer.engine, []).append((answer.request, answer.response))
    for made_by, answered in by_engine.items():
        store.add(answered, engine=made_by)
    _name_new(store, new)
    result.there += len(have)
    result.added += len(new)
    result.models.update(answer.model for answer in new)
    pending.clear()


def _name_new(store: ResponseStore, new: list[Answer]) -> None:
    """Call answers what their file does, unless somebody has called them something already."""
    names = dict(store.db.execute("SELECT identity, name FROM models"))
    query = (
        "SELECT m.identity, s.json FROM names n JOIN models m ON m.id = n.model "
        "JOIN settings s ON s.id = n.settings"
    )
    named = set(store.db.execute(query))
    told_apart = {identity for identity, _ in named}
    for place, name in {(a.request.model, a.request.settings_json): a.model for a in new}.items():
        identity, settings_json = place
        unnamed = names[identity] == identity or identity in told_apart
        if unnamed and place not in named:
            store.name_model(identity, name, settings_json)


def _exported(value: dict[str, Any]) -> dict[str, Any] | None:
    """The row under the column names of today if `export` wrote it, None otherwise."""
    if {"key", "identity", "how"} <= value.keys():
        value = {FORMER_NAMES.get(name, name): cell for name, cell in value.items()}
    needed = {"key", "identity", "settings", "messages", "response"}
    return value if needed <= value.keys() else None


def _as_exported(value: dict[str, Any]) -> Answer:
    """A row that `export` wrote, as it was in its store but for its time."""
    for name, kind in COLUMNS.items():
        cell = value.get(name)
        if not isinstance(cell, kind) or (isinstance(cell, int) and not 0 <= cell < 2**63):
            raise Unusable(f"not as it was exported: {name} is {cell!r:.50}")
    messages = ends_with_user(conversation(value["messages"], "messages"))
    settings_json, sample, reason = value["settings"], value["sample"], value["finish_reason"]
    error = value.get("error")
    if reason not in ("stop", "length", "error") or (reason == "error") != (error is not None):
        raise Unusable(f"not as it was exported: {reason!r} with error {error!r:.50}")
    try:
        seen = seen_messages(messages, json.loads(settings_json).get("system"))
        key = request_key(value["identity"], seen, settings_json, sample)
        ids = tuple(array("I", value.get("token_ids") or ()))
        seed = None if value.get("seed") is None else int(value["seed"])
    except (ValueError, TypeError, AttributeError, OverflowError) as problem:
        raise Unusable(f"not as it was exported: {problem!r}") from problem
    if key != value["key"]:
        raise Unusable("its key is not that of its model, messages and settings: altered")
    request = Request(
        key, Prompt(value["prompt_id"], messages), sample, seen, value["identity"], settings_json
    )
    tokens = value.get("completion_tokens")
    response = Response(
        key,
        value["response"],
        ids,
        reason,
        value["prompt_tokens"],
        error,
        value.get("reasoning") or "",
        None if ids and tokens == len(ids) else tokens,
        value.get("seconds"),
        seed,
        value.get("fault"),
        value.get("tries") or 1,
    )
    return Answer(request, response, value["model"], value.get("engine") or Answer.engine)


def _taken(
    row: Row,
    columns: tuple[str, ...],
    name: str | None,
    samples: Counter[tuple[str, str]],
    result: Imported,
) -> list[Answer]:
    found = answers(row.value, columns)
    if not all(answer.model or name or answer.problem for answer in found):
        raise Unusable("the row does not name its model; give --model-name")
    taken = []
    for answer in found:
        if answer.problem:
            result.skip(row, answer.problem)
            continue
        stored = _answer(answer, answer.model or name or "", samples)
        ended = stored.response.finish_reason == "stop"
        result.transcripts += answer.transcribed
        result.assumed_ends += answer.finish_reason is None and ended
        taken.append(stored)
    return taken


def _answer(answer: FoundAnswer, model: str, samples: Counter[tuple[str, str]]) -> Answer:
    identity = IMPORTED + model
    settings_json = canonical_json({"imported": True})
    sample = answer.sample
    if sample is None:
        place = identity, digest(list(answer.messages))
        sample = samples[place]
        samples[place] += 1
    key = request_key(identity, answer.messages, settings_json, sample)
    prompt = Prompt(answer.prompt_id or key[:16], answer.messages)
    reasoning, text = split_reasoning(answer.text)
    cut = bool(reasoning) and is_unfinished(reasoning)  # though nobody said so
    reason = answer.finish_reason or ("length" if cut else "stop")
    request = Request(key, prompt, sample, answer.messages, identity, settings_json)
    return Answer(request, Response(key, text, (), reason, 0, reasoning=reasoning), model)
