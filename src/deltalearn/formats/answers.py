"""The shapes in which other tools write answers: what stands in a row, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltalearn.records import (
    Message,
    Unusable,
    conversation,
    ends_with_user,
    refuse_tools,
    seen_messages,
)


@dataclass(frozen=True)
class Found:
    """One answer in a row of somebody's file; `problem` is set if its cell holds none."""

    model: str
    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None = None  # None: the file does not say
    prompt_id: str | None = None
    sample: int | None = None  # None: by the order of a model's answers to the same prompt
    problem: str | None = None


Shape = Callable[[dict[str, Any]], list[Found] | None]


def read_row(value: dict[str, Any], columns: tuple[str, ...] = ()) -> list[Found]:
    """The answers of a row; `columns` are those of models, in a ladder. Unusable if it has none."""
    refuse_tools(value, "the row")
    found = _columns(value, columns) if columns else None
    for shape in () if columns else SHAPES:
        found = shape(value)
        if found is not None:
            break
    if not found:
        raise Unusable(f"no answer in a known shape; the row has {', '.join(map(str, value))}")
    return found


def _columns(value: dict[str, Any], columns: tuple[str, ...]) -> list[Found]:
    """A prompt, and a column of answers for each model: the authors' ladder."""
    prompt = _prompt(value)
    found = []
    for column in columns:
        if column not in value:
            raise Unusable(f"no column {column!r}; the row has {', '.join(map(str, value))}")
        found.append(_one_of_several(column, prompt, value[column], f"column {column!r}", value))
    return found


def _one_of_several(
    model: Any, prompt: tuple[Message, ...], cell: Any, place: str, value: dict[str, Any]
) -> Found:
    """The answer in a cell, or its problem, which is not the other models'."""
    text, problem = "", None
    try:
        text = _text(cell)
    except Unusable as bad:
        problem = f"{place}: {bad}"
    name = model if isinstance(model, str) else ""
    return Found(name, prompt, text, prompt_id=_id(value), problem=problem)


def _ultrafeedback(value: dict[str, Any]) -> list[Found] | None:
    """instruction, completions: each with its model, and with a system prompt of its own."""
    completions = value.get("completions")
    if not isinstance(completions, list) or {type(c) for c in completions} != {dict}:
        return None
    found = []
    for number, completion in enumerate(completions, start=1):
        prompt = _prompt({**value, OWN_SYSTEM: completion.get(OWN_SYSTEM)})
        model, cell = completion.get("model"), completion.get("response")
        found.append(_one_of_several(model, prompt, cell, f"completion {number}", value))
    return found


def _distilabel(value: dict[str, Any]) -> list[Found] | None:
    """instruction, generations, generation_models (or model_names): distilabel."""
    generations = value.get("generations")
    models = value.get("generation_models") or value.get("model_names")
    if not isinstance(generations, list):
        return None
    if not isinstance(models, list):
        models = [models or value.get("model_name")] * len(generations)
    if not any(isinstance(model, str) for model in models) and _sides(value):
        return None  # a pair beside the two answers that it is made of: it tells them apart
    if len(models) != len(generations):
        raise Unusable(f"{len(generations)} generations, but {len(models)} models")
    prompt = _prompt(value)
    return [
        _one_of_several(model, prompt, cell, f"generation {number}", value)
        for number, (model, cell) in enumerate(zip(models, generations, strict=True), start=1)
    ]


def _preference(value: dict[str, Any]) -> list[Found] | None:
    """chosen and rejected: TRL, UltraFeedback binarized, Argilla; and our own pairs."""
    sides = _sides(value)
    if not sides:
        return None
    prompt = _prompt_of_pair(value, [text for _, text, _ in sides])
    return [
        Found(model, prompt, _text(text), _reason(reason), _id(value))
        for model, text, reason in sides
    ]


def _sides(value: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Model, answer and finish reason of chosen and rejected; none unless both are there."""
    sides = []
    for side in ("chosen", "rejected"):
        text = value.get(side, value.get(f"{side}_response"))
        if text is None:
            return []
        model = value.get(f"{side}_model") or value.get(f"{side}-model") or side
        sides.append((str(model), text, value.get(f"{side}_finish_reason")))
    return sides


def _prompt_of_pair(value: dict[str, Any], sides: list[Any]) -> tuple[Message, ...]:
    """The prompt of both sides: a column, or what stands before their last turns, or both."""
    turns, others = (
        conversation(side[:-1], "chosen or rejected") if isinstance(side, list) and side[1:] else ()
        for side in sides
    )
    if turns != others:
        raise Unusable("chosen and rejected do not begin with the same turns")
    if not any(value.get(column) for column in PROMPTS):
        if not turns:
            raise Unusable("no prompt, and chosen and rejected hold none")
        return _asked(value, turns)
    prompt = _prompt(value)
    if prompt[len(prompt) - len(turns) :] == turns:
        return prompt
    # The column has the first question, the sides the rest; either may have the system turn.
    (system, first), (own, rest) = _system_apart(prompt), _system_apart(_asked(value, turns))
    if rest[: len(first)] == first and (not system or not own or system == own):
        return (own or system) + rest
    raise Unusable("the prompt and the turns before the answers differ")


def _system_apart(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A system turn at the beginning, if there is one, and the others."""
    first = int(turns[0]["role"] == "system")
    return turns[:first], turns[first:]


def _single(value: dict[str, Any]) -> list[Found] | None:
    """One answer a row: AlpacaEval's outputs, plain JSONL, chat logs whose last turn answers."""
    for column in ("response", "output", "completion", "answer", "generation", "text"):
        if value.get(column) is not None:
            text, prompt = _text(value[column]), _prompt(value)
            break
    else:
        messages = value.get("messages") or value.get("conversations")
        if not isinstance(messages, list) or len(messages) < 2:
            return None
        turns = conversation(messages, "messages")
        if turns[-1]["role"] != "assistant":
            return None
        text, prompt = turns[-1]["content"], _asked(value, turns[:-1])
    sample = value.get("sample")
    reason = _reason(value.get("finish_reason"))
    sample = sample if isinstance(sample, int) and 0 <= sample < 2**63 else None
    return [Found(_model(value), prompt, text, reason, _id(value), sample)]


PROMPTS = ("messages", "prompt", "instruction", "question", "input")
# Most specific first.
SHAPES: tuple[Shape, ...] = (_ultrafeedback, _distilabel, _preference, _single)
OWN_SYSTEM = "custom_system_prompt"  # of a completion, in UltraFeedback


def _prompt(value: dict[str, Any]) -> tuple[Message, ...]:
    for column in PROMPTS:
        cell = value.get(column)
        if cell:
            for other in ("input", "context") if column == "instruction" else ():
                if value.get(other) and value[other] != cell:  # Alpaca's, Dolly's: half a question
                    raise Unusable(f"instruction and {other}: join them into one column, prompt")
            turns = conversation(cell, column)
            if turns[-1]["role"] == "assistant":  # a whole dialogue: its last answer is not asked
                turns = turns[:-1]
            if not turns:
                raise Unusable(f"{column} has no question")
            return _asked(value, turns)
    raise Unusable(f"no prompt; the row has {', '.join(map(str, value))}")


def _asked(value: dict[str, Any], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns behind a system turn that has a column of its own, as distilabel's and Orca's."""
    systems = (value.get(column) for column in (OWN_SYSTEM, "system_prompt", "system"))
    system = next((s for s in systems if isinstance(s, str) and s.strip()), None)
    return ends_with_user(seen_messages(turns, system))


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


def _model(value: dict[str, Any]) -> str:
    for column in ("model", "generator", "model_name", "generation_model"):
        if isinstance(value.get(column), str):
            return value[column]
    return ""


def _id(value: dict[str, Any]) -> str | None:
    for column in ("prompt_id", "id"):
        if isinstance(value.get(column), str | int):
            return str(value[column])
    return None


def _reason(value: Any) -> str | None:
    if value in ("stop", "length"):
        return value
    if value is None:
        return None
    raise Unusable(f"finish reason {value!r}; known: stop, length")
