"""Read prompts from files of rows, a folder of them, or a Hugging Face data set.

Nothing is dropped silently: each row that is no usable prompt becomes a reject with its file and
line (or row) and the reason.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats import columns
from deltalearn.formats.files import Row
from deltalearn.formats.rows import rows
from deltalearn.formats.turns import conversations, dialogue, transcript
from deltalearn.records import Message, Prompt, Unusable, ends_with_user, refuse_tools
from deltalearn.util.files import digest


@dataclass
class PromptSet:
    """Usable prompts, the rejected rows, and counts of what happened to every row read."""

    prompts: list[Prompt]
    rejects: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def read_prompts(
    source: str,
    *,
    split: str | None = None,
    column: str | None = None,
    id_column: str = "id",
    ignore_columns: Collection[str] = (),
    limit: int | None = None,
    select: str = "first",
    seed: int = 0,
) -> PromptSet:
    """Read, check and deduplicate prompts.

    Args:
        source: As for `formats.rows.rows`.
        split: Of a hub data set, or of a folder whose names tell splits; default "train".
        column: Column with a prompt string or a list of messages; default: the first there
            is of `formats.columns.PROMPT`, behind a system turn that has a column of its own.
        id_column: Column with ids; where it is missing they are derived from the content.
        ignore_columns: Columns to leave out, though they may change the question.
        limit: Number of prompts to keep, chosen after checking; default all.
        select: "first" or "random".
        seed: Of the random choice.

    Returns:
        Prompts, rejected rows and counts.

    Raises:
        UserError: If the source is missing or no usable prompt is left.
    """
    result = PromptSet([])
    count: Counter[str] = Counter()
    seen_content: set[str] = set()
    seen_ids: set[str] = set()
    for row in rows(source, split, ignore=ignore_columns):
        count["read"] += 1
        try:
            if row.problem:
                raise Unusable(row.problem)
            messages, answered, transcribed = _messages(row.value, column)
            content = digest(list(messages))
            prompt = Prompt(_id(row.value, id_column) or content[:16], messages)
            if content in seen_content:
                count["duplicates"] += 1
                continue
            if prompt.id in seen_ids:
                raise Unusable(f"id {prompt.id!r} stands for another prompt already")
        except Unusable as problem:
            result.rejects.append(_reject(row, problem))
            continue
        seen_content.add(content)
        seen_ids.add(prompt.id)
        if answered:
            count["final_answers_removed"] += 1
        if transcribed:
            count["transcripts"] += 1
        result.prompts.append(prompt)
    count["rejected"] = len(result.rejects)
    if not result.prompts:
        why = f"; first problem: {_first_problem(result)}" if result.rejects else " (no rows)"
        raise UserError(f"{source}: no usable prompt among {count['read']} rows{why}")
    if limit is not None and limit < len(result.prompts):
        count["not_selected"] = len(result.prompts) - limit
        if select == "random":
            random.Random(seed).shuffle(result.prompts)
        del result.prompts[limit:]
    result.counts = {**count, "prompts": len(result.prompts)}
    return result


def _first_problem(result: PromptSet) -> str:
    return f"{result.rejects[0]['where']}: {result.rejects[0]['reason']}"


def _reject(row: Row, problem: Unusable) -> dict[str, Any]:
    """A line of the rejects file; times and bytes, which JSON lacks, as their text."""
    value = json.loads(json.dumps(row.value, default=str))
    return {"where": row.where, "reason": str(problem), "row": value}


def _messages(row: Any, column: str | None) -> tuple[tuple[Message, ...], bool, bool]:
    """The conversation of a row, whether its answer had to be taken off, and if it was a text."""
    refuse_tools(row, "the row")
    row = conversations(row)
    name = column or columns.prompt_column(row) or "prompt"
    if row.get(name) is None:
        raise Unusable(
            f"no column {name!r}; there are {', '.join(map(str, row)) or 'none'}; prompts.column "
            "(--prompt-column) names another"
        )
    messages = columns.whole_question(row, name, dialogue(row[name], name))
    # Instruction data carries the answer as last turn.
    answered = messages[-1]["role"] == "assistant" and len(messages) > 1
    transcribed = isinstance(row[name], str) and transcript(row[name]) is not None
    return ends_with_user(messages[:-1] if answered else messages), answered, transcribed


def _id(row: dict, id_column: str) -> str | None:
    value = row.get(id_column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise Unusable(f"{id_column} must be a non-empty string or an integer, not {value!r}")
    return str(value)
