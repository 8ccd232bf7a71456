"""The shapes in which other tools write answers: what stands in a row, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deltalearn.generate.requests import seen_messages
from deltalearn.records import Message, Unusable, conversation, ends_with_user


@dataclass(frozen=True)
class Found:
    """One answer in a row of somebody's file."""

    model: str
    messages: tuple[Message, ...]
    text: str
    finish_reason: str | None = None  # None: the file does not say
    prompt_id: str | None = None
    sample: int | None = None  # None: by the order of a model's answers to the same prompt


Shape = Callable[[dict[str, Any]], list[Found] | None]


def read_row(value: dict[str, Any], columns: tuple[str, ...] = ()) -> list[Found]:
    """The answers of a row; `columns` are those of models, in a ladder. Unusable if it has none."""
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
        if value[column] is not None:
            found.append(Found(column, prompt, _text(value[column]), prompt_id=_id(value)))
    return found


def _distilabel(value: dict[str, Any]) -> list[Found] | None:
    """instruction, generations, generation_models (or model_names): distilabel, UltraFeedback."""
    generations = value.get("generations")
    completions = value.get("completions")
    models = value.get("generation_models") or value.get("model_names")
    if isinstance(completions, list) and {type(c) for c in completions} == {dict}:
        generations = [c.get("response") for c in completions]
        models = [c.get("model") for c in completions]
    if not isinstance(generations, list):
        return None
    if not isinstance(models, list):
        models = [models or value.get("model_name")] * len(generations)
    if len(models) != len(generations):
        raise Unusable(f"{len(generations)} generations, but {len(models)} models")
    prompt = _prompt(value)
    return [
        Found(m if isinstance(m, str) else "", prompt, _text(g), prompt_id=_id(value))
        for m, g in zip(models, generations, strict=True)
        if g is not None  # distilabel's mark of a failure
    ]


def _preference(value: dict[str, Any]) -> list[Found] | None:
    """chosen and rejected: TRL, UltraFeedback binarized, Argilla; and our own pairs."""
    sides = []
    for side in ("chosen", "rejected"):
        text = value.get(side, value.get(f"{side}_response"))
        if text is None:
            return None
        model = value.get(f"{side}_model") or value.get(f"{side}-model") or side
        sides.append((str(model), text, value.get(f"{side}_finish_reason")))
    prompt = _prompt_of_pair(value, [text for _, text, _ in sides])
    return [
        Found(model, prompt, _text(text), _reason(reason), _id(value))
        for model, text, reason in sides
    ]


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
    asked = _asked(value, turns)
    if asked[: len(prompt)] == prompt:  # the column has the first question, the sides the rest
        return asked
    raise Unusable("the prompt and the turns before the answers differ")


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
SHAPES: tuple[Shape, ...] = (_distilabel, _preference, _single)


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
    systems = (value.get(column) for column in ("system_prompt", "system"))
    system = next((s for s in systems if isinstance(s, str) and s.strip()), None)
    return ends_with_user(seen_messages(turns, system))


def _text(cell: Any) -> str:
    """An answer: text, or a conversation of which the last turn is the answer."""
    if isinstance(cell, str):
        return cell
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
