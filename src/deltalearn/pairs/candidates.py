"""Candidates for pairs: answers of two models to the same prompts, side by side."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

from deltalearn.errors import UserError
from deltalearn.records import Message, Prompt, Request, Response
from deltalearn.responses.store import RESPONSE, Group, ResponseStore, response_of

PROMPTS_PER_LOOKUP = 4096  # prompts looked up together

Candidate = tuple[Prompt, int, Response | None, Response | None]


def candidates_of_requests(
    store: ResponseStore, chosen: Iterable[Request], rejected: Iterable[Request]
) -> Iterator[Candidate]:
    """Look up both models' answers, request by request.

    Args:
        store: Where the answers are.
        chosen: Requests to the model whose answers are preferred.
        rejected: Requests to the other model, for the same prompts in the same order.

    Yields:
        (prompt, sample, chosen response, rejected response); None where the store has none.
    """
    both = zip(chosen, rejected, strict=True)
    while part := list(itertools.islice(both, PROMPTS_PER_LOOKUP)):
        found = store.get(request.key for pair in part for request in pair)
        for c, r in part:
            yield c.prompt, c.sample, found.get(c.key), found.get(r.key)


def candidates_of_models(
    store: ResponseStore, chosen: str, rejected: str, settings_json: str | None = None
) -> Iterator[Candidate]:
    """Look up all answers of two models to the same prompt with the same sample number.

    Args:
        store: Where the answers are.
        chosen: Name or identity of the model whose answers are preferred.
        rejected: Name or identity of the other; of one model asked in two ways, its other name.
        settings_json: Settings (a JSON object) of both, or a part of them that tells which; needed
            where a model has answers with several settings.

    Yields:
        (prompt, sample, chosen response, rejected response); None where the store has none.

    Raises:
        UserError: If there is no such model, or if it is not clear which answers are meant.
    """
    sides = [_group(store, name, settings_json) for name in (chosen, rejected)]
    if sides[0] == sides[1]:
        raise UserError(f"{chosen} and {rejected} are the same answers: there is no delta")
    # One index scan a side, merged by (prompt, sample): memory does not grow with their number.
    streams = (_stream(store, group, side) for side, group in enumerate(sides))
    by_place = itemgetter(0)
    for (prompt, sample), found in itertools.groupby(heapq.merge(*streams, key=by_place), by_place):
        rows = list(found)
        answers = {side: response for _, side, _, response in rows}
        row = store.db.execute("SELECT messages FROM prompts WHERE id = ?", [prompt]).fetchone()
        turns: list[Message] = json.loads(row[0])
        yield Prompt(rows[0][2], tuple(turns)), sample, answers.get(0), answers.get(1)


def shared_template(
    store: ResponseStore, chosen: str, rejected: str, settings_json: str | None = None
) -> dict[str, Any]:
    """Find the arguments of the chat template with which both models were asked.

    Args:
        store: Where the answers are.
        chosen: As for `candidates_of_models`, like the others.
        rejected: Of the other side.
        settings_json: Settings of both, or a part of them.

    Returns:
        The arguments; empty where the two were asked with different ones, which then are a model's
        own and say nothing of the student's prompts.
    """
    groups = [_group(store, name, settings_json) for name in (chosen, rejected)]
    one, other = (json.loads(group.settings_json).get("template") or {} for group in groups)
    return one if one == other else {}


def _group(store: ResponseStore, name: str, settings_json: str | None) -> Group:
    """The one group of answers that is meant."""
    groups = store.named(name)
    identities = dict.fromkeys(group.identity for group in groups)
    if len(identities) > 1:
        raise UserError(
            f"{store.path}: {name!r} names several models; give one of {', '.join(identities)}"
        )
    meant = groups if settings_json is None else _fitting(groups, json.loads(settings_json))
    if len(meant) != 1:
        shown = "\n".join(f"  {group.settings_json}" for group in groups)
        raise UserError(
            f"{store.path}: {name} has answers with {len(meant)} settings that fit; name one with "
            f"--settings:\n{shown}"
        )
    return meant[0]


def _fitting(groups: list[Group], wanted: dict[str, Any]) -> list[Group]:
    """Groups that were asked in just this way, or else those whose settings hold these values.

    Two models of a pair may have been asked in different ways, so that no whole settings fit both.
    """
    settings = [(group, json.loads(group.settings_json)) for group in groups]
    exact = [group for group, values in settings if values == wanted]
    return exact or [
        group for group, values in settings if all(values.get(k) == v for k, v in wanted.items())
    ]


def _stream(
    store: ResponseStore, group: Group, side: int
) -> Iterator[tuple[tuple[int, int], int, str, Response]]:
    """((prompt, sample), side, the prompt's name, the answer), in order."""
    cursor = store.db.cursor()
    query = (
        f"SELECT prompt, sample, prompt_id, {RESPONSE} FROM responses "  # noqa: S608 (constants)
        "WHERE model = ? AND settings = ? ORDER BY prompt, sample"
    )
    for prompt, sample, prompt_id, *row in cursor.execute(query, group[:2]):
        yield (prompt, sample), side, prompt_id, response_of(tuple(row))
