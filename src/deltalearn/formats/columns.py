"""In which columns other tools keep prompts, answers and preferences: the table of all readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.records import Message, Unusable, seen_messages

PROMPT = ("messages", "prompt", "instruction", "question", "input")
SYSTEM = ("custom_system_prompt", "system_prompt", "system")  # UltraFeedback, distilabel, Orca
REST_OF_INSTRUCTION = ("input", "context")  # the second half of a question: Alpaca, Dolly
ANSWER = ("response", "output", "completion", "answer", "generation", "text")
DIALOGUE = ("messages", "conversations")  # whose last turn is the answer
SEVERAL = ("completions", "generations")  # answers in one cell: UltraFeedback, distilabel
CHOSEN = ("chosen", "chosen_response")
REJECTED = ("rejected", "rejected_response")
MODEL = ("model", "generator", "model_name", "generation_model")
ID = ("prompt_id", "id")


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` that the row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column with the prompt. Unusable if it holds half of a question, the rest beside it."""
    name = next((name for name in PROMPT if row.get(name)), None) or first_of(row, PROMPT)
    for other in REST_OF_INSTRUCTION if name == "instruction" else ():
        if row.get(other) and row[other] != row["instruction"]:
            raise Unusable(f"instruction and {other}: join them into one column, prompt")
    return name


def system_text(row: Mapping[str, Any]) -> str | None:
    """The text of a system turn that has a column of its own."""
    cells = (row.get(name) for name in SYSTEM)
    return next((cell for cell in cells if isinstance(cell, str) and cell.strip()), None)


def behind_system(row: Mapping[str, Any], turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns behind the system turn that the row has for them, unless they have their own."""
    return seen_messages(turns, system_text(row))
