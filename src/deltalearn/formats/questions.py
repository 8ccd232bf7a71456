"""Evaluation items: a question, its one reference answer and the task it belongs to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats import columns
from deltalearn.formats.files import Row
from deltalearn.formats.rows import rows
from deltalearn.formats.turns import conversations, dialogue
from deltalearn.records import Message, Unusable, ends_with_user, refuse_tools


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `task` groups items for the per-task table and the macro average."""

    id: str
    task: str
    messages: tuple[Message, ...]
    answer: str


def read_items(
    source: str,
    *,
    prompt_column: str | None = None,
    answer_column: str = "answer",
    task_column: str | None = None,
    split: str | None = None,
    ignore_columns: Collection[str] = (),
    limit: int | None = None,
) -> list[Item]:
    """Read evaluation items, each with its reference answer.

    The prompt is a string or a list of messages. Unlike prompts, a bad row is an error: a score
    over silently fewer items would be another score.

    Args:
        source: As for `formats.rows.rows`.
        prompt_column: Column of the question; default: the first there is of `columns.PROMPT`,
            behind a system turn that has a column of its own.
        answer_column: Column of the reference answer.
        task_column: Column of the task; default: all are one task.
        split: Of the source; default: the only one there is.
        ignore_columns: Columns to leave out.
        limit: Number of items to read, from the first; default all.

    Returns:
        The items, in order.

    Raises:
        UserError: If the source is missing, or if a row is no item.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for row in rows(source, split, ignore=ignore_columns, default=None):
        if row.problem:
            raise UserError(f"{row.where}: {row.problem}")
        try:
            messages = _question(row, prompt_column)
        except Unusable as problem:
            raise UserError(f"{row.where}: {problem}") from problem
        answer = _cell(row.where, row.value, "answer_column", answer_column, (str,))
        task = "all"
        if task_column:
            task = _cell(row.where, row.value, "task_column", task_column, (str,))
        identity = row.value.get("id")
        name = str(len(items) if identity is None else identity)
        if name in seen:
            raise UserError(f"{row.where}: id {name!r} stands for another item already")
        seen.add(name)
        items.append(Item(name, task, messages, answer))
        if limit is not None and len(items) == limit:
            break
    if not items:
        raise UserError(f"{source}: no evaluation item in it")
    return items


def _question(row: Row, column: str | None) -> tuple[Message, ...]:
    refuse_tools(row.value, "the row")
    value = conversations(row.value)
    column = column or columns.prompt_column(value) or "prompt"
    prompt = _cell(row.where, value, "prompt_column", column, (str, list))
    return ends_with_user(columns.whole_question(value, column, dialogue(prompt, column)))


def _cell(where: str, row: dict[str, Any], key: str, column: str, kinds: tuple[type, ...]) -> Any:
    value = row.get(column)
    if not isinstance(value, kinds) or not value:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(
            f"{where}: column {column!r} must be a non-empty {wanted}; "
            f"the row has {', '.join(map(str, row))}; {key} of these questions names another"
        )
    return value
