"""Chat templates that have arguments of their own, for whoever loads a model without them.

A student that was trained with `enable_thinking: false` is another model to whoever does not say
so. What is written into a template is a default: an argument that is given still wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.clock import PLACES, SETTINGS
from deltalearn.lm.render import whole_text
from deltalearn.lm.turn import CONVERSATIONS
from deltalearn.records import Message, Rendering
from deltalearn.util.files import write_text

ANSWER = Message(role="assistant", content="<think>\nx\n</think>\n\ny")
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "x",
        "parameters": {"type": "object", "properties": {}},
    },
}
DAY = "2024-02-09"  # any


def with_defaults(template: str, arguments: Mapping[str, Any]) -> str:
    """Change a chat template into one that has arguments when nobody gives them.

    Args:
        template: Of Jinja.
        arguments: Of JSON's types; None is taken for not given, as transformers gives it.

    Returns:
        The template behind a line that sets each; programs that look for the variables that a
        template takes still find them.
    """
    sets = "".join(
        f"{{% if {name} is not defined or {name} is none %}}"
        f"{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in arguments.items()
        if name.isidentifier() and value is not None  # Jinja has no other names
    )
    return f"{sets}\n{template}" if sets else template  # trim_blocks takes this line break


def _literal(value: Any) -> str:
    """Write a value as Jinja reads it: JSON, but for the name of nothing."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(str(key))}: {_literal(item)}" for key, item in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str)


def remember(directory: Path, arguments: Mapping[str, Any]) -> None:
    """Write arguments into every chat template that lies in a directory.

    Args:
        directory: Of a model or a tokenizer; its files are changed.
        arguments: As for `with_defaults`; with none, nothing is changed.
    """
    if not arguments:
        return
    for file in sorted(file for pattern in PLACES for file in directory.glob(pattern)):
        if file.suffix == ".json":
            _change_json(file, arguments)
        else:
            write_text(file, with_defaults(file.read_text(encoding="utf-8"), arguments))
    _change_json(directory / SETTINGS, arguments)


def _change_json(file: Path, arguments: Mapping[str, Any]) -> None:
    """The template of a file that has it as text, or as a list of templates with names."""
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    given = values.get("chat_template")
    if isinstance(given, str):
        values["chat_template"] = with_defaults(given, arguments)
    elif isinstance(given, list):
        for named in given:
            named["template"] = with_defaults(named["template"], arguments)
    else:
        return
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def require_remembered(
    tokenizer: PreTrainedTokenizerBase,
    remembering: PreTrainedTokenizerBase,
    arguments: Mapping[str, Any],
) -> None:
    """Make sure that one template without arguments renders what the other does with them.

    Args:
        tokenizer: The student's.
        remembering: That of what was written.
        arguments: The student's.

    Raises:
        UserError: If it does not, with both texts.
    """
    if tokenizer.chat_template is None:
        return
    for turns in CONVERSATIONS:
        for messages, waiting in ((turns, True), ((*turns, ANSWER), False)):
            for more in ({}, {"tools": [TOOL]}):
                told = Rendering({**arguments, **more}, DAY)
                wanted = whole_text(tokenizer, messages, told, waiting=waiting)
                found = whole_text(remembering, messages, Rendering(more, DAY), waiting=waiting)
                if found != wanted:
                    raise UserError(
                        "the arguments of student.template cannot be written into its chat "
                        f"template as defaults: it would render {found!r} instead of {wanted!r}. "
                        "Write them into the template by hand and leave student.template out"
                    )
