"""In which columns other tools keep prompts, answers and preferences: the table of all readers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.formats.turns import texts_in
from deltalearn.records import Message, Unusable

PROMPT = (
    "messages", "conversations", "conversation", "prompt", "instruction", "question", "input",
)  # fmt: skip
SYSTEM = ("custom_system_prompt", "system_prompt", "system")  # UltraFeedback, distilabel, Orca
REST = ("input", "context")  # the second half of a question: Alpaca, Dolly, SQuAD
CHANGING = (  # what else a question may have beside its text; `tools` are refused apart
    *REST, "history", "documents", "few_shot", "fewshot", "few_shots", "demonstrations", "choices",
    "options", "image", "images", "video", "videos", "audio", "audios", "chat_template_kwargs",
)  # fmt: skip
ANSWER = ("response", "output", "completion", "answer", "generation", "text")
DIALOGUE = ("messages", "conversations", "conversation")  # whose last turn is the answer
SEVERAL = ("completions", "generations")  # answers in one cell: UltraFeedback, distilabel
CHOSEN = ("chosen", "chosen_response")
REJECTED = ("rejected", "rejected_response")
MODEL = ("model", "generator", "model_name", "generation_model")
ID = ("prompt_id", "id")


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` that the row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column with the prompt, None if there is none."""
    return next((name for name in PROMPT if row.get(name)), None) or first_of(row, PROMPT)


def system_text(row: Mapping[str, Any]) -> str | None:
    """The text of a system turn that has a column of its own.

    Raises:
        Unusable: If it is no text, or if two columns have another one each.
    """
    found = {name: row[name] for name in SYSTEM if row.get(name) is not None}
    for name, cell in found.items():
        if not isinstance(cell, str):
            raise Unusable(f"column {name!r} is {type(cell).__name__}, not the text of a turn")
    said = {name: text for name, text in found.items() if text.strip()}
    if len(set(said.values())) > 1:
        raise Unusable(f"the system columns {' and '.join(said)} differ: {LEAVE_OUT}")
    return next(iter(said.values()), None)


LEAVE_OUT = "leave one out (ignore_columns, --ignore-column)"


def _says(said: str, text: str) -> bool:
    """Whether `text` is a part of `said` that is no piece of a word or number."""
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said) is not None


def whole_question(
    row: Mapping[str, Any], prompt: str | None, turns: Sequence[Message], used: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The turns of a question with all that its row has for it: the system turn of a column.

    Args:
        row: The row.
        prompt: The column of the turns; None if the answers' columns have them.
        turns: At least one.
        used: Columns that the caller reads himself.

    Raises:
        Unusable: If the row has a system turn in two places, or more of the question in a column
            that is not read. Text that the turns have as well is no more.
    """
    others = [n for n in CHANGING if n in row and row[n] and n != prompt and n not in used]
    said = "\n".join(texts_in([dict(turn) for turn in turns])) if others else ""
    for name in others:
        if not all(_says(said, text) for text in texts_in(row[name])):
            raise Unusable(
                f"{prompt or 'the prompt'} and {name}: the question is in both; join them into one "
                f"column, or leave {name} out (ignore_columns, --ignore-column)"
            )
    system = system_text(row)
    if system is None:
        return tuple(turns)
    if turns[0]["role"] != "system":
        return (Message(role="system", content=system), *turns)
    if turns[0]["content"] != system:
        raise Unusable(f"a system column and another system turn: {LEAVE_OUT}")
    return tuple(turns)
