"""The formats in which other tools write answers: what stands in a row, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deltalearn.formats import columns
from deltalearn.formats.preferences import has_preference, preference
from deltalearn.formats.turns import conversations, dialogue
from deltalearn.records import Message, Unusable, conversation, ends_with_user, refuse_tools


@dataclass(frozen=True)
class FoundAnswer:
    """One answer in a row of somebody's file; `problem` is set if its cell holds none."""

    model: str
    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None = None  # None: the file does not say
    prompt_id: str | None = None
    sample: int | None = None  # None: by the order of a model's answers to the same prompt
    problem: str | None = None
    transcribed: bool = False  # the prompt's turns were made of HH-RLHF's text


RowFormat = Callable[[dict[str, Any]], list[FoundAnswer] | None]


def answers(value: dict[str, Any], ladder: tuple[str, ...] = ()) -> list[FoundAnswer]:
    """Find the answers of a row.

    Args:
        value: The row.
        ladder: Columns that hold answers, each of the model that it is called after.

    Returns:
        At least one answer.

    Raises:
        Unusable: If the row has none.
    """
    refuse_tools(value, "the row")
    value = conversations(value)
    if ladder:
        found = _columns(value, ladder)
    else:
        tried = (row_format(value) for row_format in ROW_FORMATS)
        found = next((some for some in tried if some is not None), [])
    if not found:
        raise Unusable(f"no answer in a known shape; the row has {', '.join(map(str, value))}")
    return found


def _columns(value: dict[str, Any], ladder: tuple[str, ...]) -> list[FoundAnswer]:
    """A prompt, and a column of answers for each model: the authors' ladder."""
    prompt = _prompt(value)
    found = []
    for column in ladder:
        if column not in value:
            raise Unusable(f"no column {column!r}; the row has {', '.join(map(str, value))}")
        found.append(_one_of_several(column, prompt, value[column], f"column {column!r}", value))
    return found


def _one_of_several(
    model: Any, prompt: tuple[Message, ...], cell: Any, place: str, value: dict[str, Any]
) -> FoundAnswer:
    """The answer in a cell, or its problem, which is not the other models'."""
    text, problem = "", None
    try:
        text = _text(cell)
    except Unusable as bad:
        problem = f"{place}: {bad}"
    name = model if isinstance(model, str) else ""
    return FoundAnswer(name, prompt, text, prompt_id=_id(value), problem=problem)


def _ultrafeedback(value: dict[str, Any]) -> list[FoundAnswer] | None:
    """instruction, completions: each with its model, and with a system prompt of its own."""
    completions = value.get("completions")
    if not isinstance(completions, list) or {type(c) for c in completions} != {dict}:
        return None
    found = []
    for number, completion in enumerate(completions, start=1):
        prompt = _prompt(_with_system_of(completion, value))
        model, cell = completion.get("model"), completion.get("response")
        found.append(_one_of_several(model, prompt, cell, f"completion {number}", value))
    return found


def _with_system_of(completion: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """A row under the system prompt of one completion, if that has its own."""
    own = completion.get(columns.SYSTEM[0])
    if not isinstance(own, str) or not own.strip():
        return value
    return {k: v for k, v in value.items() if k not in columns.SYSTEM} | {columns.SYSTEM[0]: own}


def _distilabel(value: dict[str, Any]) -> list[FoundAnswer] | None:
    """instruction, generations, generation_models (or model_names): distilabel."""
    generations = value.get("generations")
    models = value.get("generation_models") or value.get("model_names")
    if not isinstance(generations, list):
        return None
    if not isinstance(models, list):
        models = [models or value.get("model_name")] * len(generations)
    if not any(isinstance(model, str) for model in models) and has_preference(value):
        return None  # a pair beside the two answers that it is made of: it tells them apart
    if len(models) != len(generations):
        raise Unusable(f"{len(generations)} generations, but {len(models)} models")
    prompt = _prompt(value)
    return [
        _one_of_several(model, prompt, cell, f"generation {number}", value)
        for number, (model, cell) in enumerate(zip(models, generations, strict=True), start=1)
    ]


def _preference(value: dict[str, Any]) -> list[FoundAnswer] | None:
    """chosen and rejected: TRL, UltraFeedback binarized, Argilla, HH-RLHF; and our own pairs."""
    if not has_preference(value):
        return None
    pair = preference(value)
    if pair.template:
        raise Unusable("chat_template_kwargs: a store has no place for them; leave them out "
                       "(--ignore-column chat_template_kwargs)")  # fmt: skip
    prompt = ends_with_user(conversation(list(pair.prompt), "the prompt"))
    sides = (
        ("chosen", pair.chosen, pair.chosen_finish_reason),
        ("rejected", pair.rejected, pair.rejected_finish_reason),
    )
    return [
        FoundAnswer(
            _model_of(side, value), prompt, text, reason, _id(value), transcribed=pair.transcribed
        )
        for side, text, reason in sides
    ]


def _model_of(side: str, value: dict[str, Any]) -> str:
    return str(value.get(f"{side}_model") or value.get(f"{side}-model") or side)


def _single(value: dict[str, Any]) -> list[FoundAnswer] | None:
    """One answer a row: AlpacaEval's outputs, plain JSONL, chat logs whose last turn answers."""
    if column := columns.first_of(value, columns.ANSWER):
        text, prompt = _text(value[column]), _prompt(value)
    else:
        column = next((name for name in columns.DIALOGUE if value.get(name)), "")
        messages = value.get(column)
        if not isinstance(messages, list) or len(messages) < 2:
            return None
        turns = conversation(messages, column)
        if turns[-1]["role"] != "assistant":
            return None
        text, turns = turns[-1]["content"], turns[:-1]
        prompt = ends_with_user(columns.whole_question(value, column, turns))
    sample = value.get("sample")
    reason = _reason(value.get("finish_reason"))
    sample = sample if isinstance(sample, int) and 0 <= sample < 2**63 else None
    model = _first(value, columns.MODEL, str) or ""
    return [FoundAnswer(model, prompt, text, reason, _id(value), sample)]


# Most specific first.
ROW_FORMATS: tuple[RowFormat, ...] = (_ultrafeedback, _distilabel, _preference, _single)


def _prompt(value: dict[str, Any]) -> tuple[Message, ...]:
    column = columns.prompt_column(value)
    if column is None:
        raise Unusable(f"no prompt; the row has {', '.join(map(str, value))}")
    turns = dialogue(value[column], column)
    if turns[-1]["role"] == "assistant":  # a whole dialogue: its last answer is not asked
        turns = turns[:-1]
    if not turns:
        raise Unusable(f"{column} has no question")
    return ends_with_user(columns.whole_question(value, column, turns))


def _text(cell: Any) -> str:
    """An answer: text, or a conversation of which the last turn is the answer."""
    if isinstance(cell, str):
        return cell
    if cell is None:  # distilabel's mark of a failure, a ladder's gap
        raise Unusable("no answer")
    for turn in cell if isinstance(cell, list) else ():
        refuse_tools(turn, "the answer")
    if isinstance(cell, list) and cell and isinstance(cell[-1], dict):
        content = cell[-1].get("content")
        if cell[-1].get("role", "assistant") == "assistant" and isinstance(content, str):
            return content
    raise Unusable(f"an answer must be text or messages, not {type(cell).__name__}")


def _id(value: dict[str, Any]) -> str | None:
    return _first(value, columns.ID, str | int)


def _first(value: dict[str, Any], names: Sequence[str], kind: Any) -> str | None:
    """The text of the first cell of a kind."""
    cells = (value.get(name) for name in names)
    return next((str(cell) for cell in cells if isinstance(cell, kind)), None)


def _reason(value: Any) -> str | None:
    if value in ("stop", "length"):
        return value
    if value is None:
        return None
    raise Unusable(f"finish reason {value!r}; known: stop, length")
