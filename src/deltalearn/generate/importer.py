"""Answers into a store, from files of ours and of others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.files import canonical_json
from deltalearn.generate.requests import request_key, seen_messages
from deltalearn.generate.shapes import Found, read_row
from deltalearn.generate.store import ResponseStore
from deltalearn.generate.thoughts import split_thought
from deltalearn.records import (
    Prompt,
    Request,
    Response,
    Unusable,
    conversation,
    ends_with_user,
)
from deltalearn.tables import Row, rows

AT_ONCE = 2000  # rows stored together
IMPORTED = "imported:"  # before the name of a model that is known by its answers alone


@dataclass
class Imported:
    """What became of the rows of a file."""

    read: int = 0
    added: int = 0
    there: int = 0  # in the store already
    assumed_ends: int = 0  # without a finish reason, taken to have ended
    models: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)  # where and why, the first few
    skipped_count: int = 0

    def skip(self, row: Row, reason: str) -> None:
        """Count a row that has no answer to take."""
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
    engine: str = "imported",
) -> Imported:
    """Take answers from a file, a folder or a hub data set into the store.

    Known shapes, found by their columns: what `export` writes; a row an answer (messages, prompt
    or instruction; response, output or completion; model or generator), as AlpacaEval writes it;
    preference pairs of TRL and Argilla (chosen, rejected, with or without chosen_model and
    rejected_model), and distilabel's (instruction, generations, generation_models). models: these
    columns hold the answers, each of the model it is called after, as in the authors' ladder. name:
    of the model, where the file does not say. A model known by its answers alone is
    `imported:<name>`. UserError if no row has an answer.
    """
    result, samples = Imported(), Counter[tuple[str, str]]()
    columns = tuple(models)
    pending: dict[str, tuple[Request, Response, str]] = {}
    for row in _source_rows(source, split):
        result.read += 1
        if row.problem:
            result.skip(row, row.problem)
            continue
        try:
            exact = _exact(row.value)
            taken = [exact] if exact else _taken(row.value, columns, name, samples, result)
        except Unusable as problem:
            result.skip(row, str(problem))
            continue
        for request, response, made_by in taken:
            pending.setdefault(request.key, (request, response, made_by or engine))
        if len(pending) >= AT_ONCE:
            _flush(store, pending, result)
    _flush(store, pending, result)
    if not result.added + result.there:
        example = f" ({result.skipped[0]})" if result.skipped else ""
        raise UserError(f"{source}: no answers to import in {result.read:,} rows{example}")
    return result


def _source_rows(source: str, split: str | None) -> Iterator[Row]:
    """Like `tables.rows`, and JSON files that hold one array, as AlpacaEval's do."""
    path = Path(source).expanduser()
    if path.suffix != ".json" or not path.is_file():
        yield from rows(source, split)
        return
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not JSON: {error}") from error
    if not isinstance(value, list):
        raise UserError(f"{source}: a JSON file must hold an array of rows; JSONL has a row a line")
    for number, row in enumerate(value, start=1):
        problem = None if isinstance(row, dict) else "an object is needed"
        yield Row(f"{source}: row {number}", row, problem)


def _flush(
    store: ResponseStore, pending: dict[str, tuple[Request, Response, str]], result: Imported
) -> None:
    have = store.have(pending)
    result.there += len(have)
    by_engine: dict[str, list[tuple[Request, Response]]] = {}
    for key, (request, response, engine) in pending.items():
        if key not in have:
            by_engine.setdefault(engine, []).append((request, response))
    for engine, answered in by_engine.items():
        store.add(answered, engine=engine)
        result.added += len(answered)
    names = {r.model: r.model.removeprefix(IMPORTED) for r, _, _ in pending.values()}
    for identity, name in names.items():
        if identity.startswith(IMPORTED):
            store.name_model(identity, name)
        result.models[name] += sum(r.model == identity for r, _, _ in pending.values())
    pending.clear()


def _exact(value: dict[str, Any]) -> tuple[Request, Response, str] | None:
    """A row that `export` wrote, as it was in its store; None for other rows."""
    if not {"key", "identity", "how", "messages", "response", "finish_reason"} <= value.keys():
        return None
    messages = ends_with_user(conversation(value["messages"], "messages"))
    how, sample = value["how"], int(value["sample"])
    seen = seen_messages(messages, json.loads(how).get("system"))
    key = request_key(value["identity"], seen, how, sample)
    if key != value["key"]:
        raise Unusable("its key is not that of its model, messages and settings: altered")
    prompt = Prompt(str(value["prompt_id"]), messages)
    request = Request(key, prompt, sample, seen, value["identity"], how)
    ids = tuple(value.get("token_ids") or ())
    seed = value.get("seed")
    response = Response(
        key,
        value["response"],
        ids,
        value["finish_reason"],
        value["prompt_tokens"],
        value.get("error"),
        value.get("thought") or "",
        None if ids else value.get("completion_tokens"),
        value.get("seconds"),
        None if seed is None else int(seed),
        value.get("fault"),
        value.get("tries") or 1,
    )
    return request, response, value.get("engine") or ""


def _taken(
    value: dict[str, Any],
    columns: tuple[str, ...],
    name: str | None,
    samples: Counter[tuple[str, str]],
    result: Imported,
) -> list[tuple[Request, Response, str]]:
    found = read_row(value, columns)
    taken = []
    for answer in found:
        model = answer.model or name
        if not model:
            raise Unusable("the row does not name its model; give --model-name")
        result.assumed_ends += answer.finish_reason is None
        taken.append((*_request_and_response(answer, model, samples), ""))
    return taken


def _request_and_response(
    answer: Found, model: str, samples: Counter[tuple[str, str]]
) -> tuple[Request, Response]:
    identity = IMPORTED + model
    how = canonical_json({"imported": True})
    sample = answer.sample
    if sample is None:
        place = identity, canonical_json(list(answer.messages))
        sample = samples[place]
        samples[place] += 1
    key = request_key(identity, answer.messages, how, sample)
    prompt = Prompt(answer.prompt_id or key[:16], answer.messages)
    request = Request(key, prompt, sample, answer.messages, identity, how)
    thought, text = split_thought(answer.text)
    reason = answer.finish_reason or "stop"
    return request, Response(key, text, (), reason, 0, thought=thought)
