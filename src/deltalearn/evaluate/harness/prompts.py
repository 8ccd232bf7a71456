"""Prompts of benchmarks, exact behind any chat template.

lm_eval has the template render a begun answer and cuts it where it finds its end, which templates
that trim answers move; and what a template writes before answers is left out of a prompt whose
continuations are scored. Here a prompt is rendered as everywhere, and what follows stands behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.render import Refusal, prompt_texts
from deltalearn.lm.turn import Turn, turn_of
from deltalearn.records import Rendering


@dataclass(frozen=True)
class Prompts:
    """Conversations of benchmarks as one model sees them.

    Attributes:
        tokenizer: Has the chat template.
        rendering: Arguments and day of the template.
        scored: True if what follows is given and scored, and not written by the model: it then
            stands where answers do.
    """

    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering
    scored: bool = False

    @cached_property
    def _turn(self) -> Turn:
        return turn_of(self.tokenizer, self.rendering)

    def text(self, asked: Sequence[Any], begun: str = "") -> str:
        """Render a conversation up to where the model goes on.

        Args:
            asked: Its turns, as messages, less an answer that is begun.
            begun: What the model's answer begins with, to the letter.

        Returns:
            The prompt.

        Raises:
            UserError: If the template refuses it, without its system turn too, or has no place for
                an answer.
        """
        (found,) = prompt_texts(self.tokenizer, [asked], self.rendering)
        if isinstance(found, Refusal):  # as lm_eval does
            without = [turn for turn in asked if turn["role"] != "system"]
            (found,) = prompt_texts(self.tokenizer, [without], self.rendering)
        if isinstance(found, Refusal):
            raise UserError(f"{self.tokenizer.name_or_path}: {found.reason}")
        return found + self._turn.before + begun if begun or self.scored else found


def prompts_of(inner: Any, rendering: Rendering, *, scored: bool) -> Prompts | None:
    """Prompts of a model of lm_eval, if it has a tokenizer of transformers.

    Args:
        inner: The model.
        rendering: Arguments and day of its chat template.
        scored: Whether continuations are scored.

    Returns:
        None where a server renders conversations.
    """
    tokenizer = getattr(inner, "tokenizer", None)
    return (
        Prompts(tokenizer, rendering, scored)
        if isinstance(tokenizer, PreTrainedTokenizerBase)
        else None
    )
