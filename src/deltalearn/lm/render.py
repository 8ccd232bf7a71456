"""Conversations to text by the model's own chat template.

With the arguments that belong to the model and on the day that belongs to the run, and in the same
way for generation, training and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.clock import on_day
from deltalearn.records import Message, Rendering

PLAIN = Rendering()
WITHOUT = (
    "the model has no chat template, by which a conversation is rendered; use an instruction-tuned "
    "model, or set `tokenizer.chat_template` and save it"
)
REFUSED = (TemplateError, TypeError, ValueError, LookupError)  # on purpose, or tripped over


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a chat template refuses a conversation (Gemma's takes no system turn, say)."""

    reason: str


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    rendering: Rendering = PLAIN,
) -> list[str | Refusal]:
    """Render conversations by the model's chat template.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        rendering: Arguments of the template, `tools` among them, and its day.

    Returns:
        The text of each conversation up to and including the header of the assistant's turn, or a
        Refusal where the template refuses it.

    Raises:
        UserError: If the template itself is broken.
    """
    if not conversations:
        return []
    try:
        return tokenizer.apply_chat_template(
            [list(messages) for messages in conversations],
            add_generation_prompt=True,
            tokenize=False,
            **_options(tokenizer, rendering),
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template is broken: {error}"
        ) from error
    except REFUSED as error:
        if not tokenizer.chat_template:
            return [Refusal(WITHOUT)] * len(conversations)
        if len(conversations) == 1:
            return [Refusal(f"the chat template refuses the conversation: {error}")]
        # jinja does not say which one it was; halving finds few among many quickly.
        half = len(conversations) // 2
        return [
            found
            for part in (conversations[:half], conversations[half:])
            for found in prompt_texts(tokenizer, part, rendering)
        ]


def whole_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    rendering: Rendering = PLAIN,
    *,
    waiting: bool = False,
) -> str | None:
    """Render one conversation, whoever has its last turn.

    Args:
        tokenizer: Has the chat template.
        messages: Its turns.
        rendering: Arguments and day of the template.
        waiting: True if the assistant's next turn is to be begun.

    Returns:
        The text; None if the template refuses the conversation, or is none.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=waiting,
            tokenize=False,
            **_options(tokenizer, rendering),
        )
    except REFUSED:
        return None


def _options(tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> Mapping[str, Any]:
    """Arguments of `apply_chat_template`."""
    options = dict(rendering.arguments)
    if rendering.day is not None:
        template = tokenizer.get_chat_template(tools=options.get("tools"))
        options["chat_template"] = on_day(template, rendering.day)
    return options
