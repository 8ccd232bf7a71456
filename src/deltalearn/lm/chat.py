"""Text to ids, once and the same way for generation, training and evaluation.

A prompt is rendered by the model's own chat template with its generation header; an answer is
tokenised by itself and joined at id level, so that no token can straddle the boundary and the
mask is exact by construction (PEERS B5, B12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.records import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a chat template does not take a conversation (Gemma's takes no system turn, say)."""

    reason: str


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Ids of each conversation up to and including the header of the assistant's next turn.

    UserError if the template refuses one, with its place in `names`.
    """
    found = prompt_ids_or_refusals(tokenizer, conversations)
    for i, ids in enumerate(found):
        if isinstance(ids, Refusal):
            name = names[i] if names else f"conversation {i}"
            raise UserError(f"{name}: {ids.reason} ({tokenizer.name_or_path})")
    return found


def prompt_ids_or_refusals(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[int] | Refusal]:
    """Like `prompt_ids`, with a Refusal in the place of each conversation that is refused.

    UserError if the template itself is broken.
    """
    try:
        rendered = tokenizer.apply_chat_template(
            [list(messages) for messages in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        return rendered["input_ids"]
    except TemplateSyntaxError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template is broken: {error}"
        ) from error
    except TemplateError as error:
        if len(conversations) == 1:
            return [Refusal(f"the chat template refuses the conversation: {error}")]
        # jinja does not say which one it was; halving finds few among many quickly.
        half = len(conversations) // 2
        return [
            found
            for part in (conversations[:half], conversations[half:])
            for found in prompt_ids_or_refusals(tokenizer, part)
        ]


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ended: Sequence[bool]
) -> list[list[int]]:
    """Ids of each answer, byte-exact, with the end-of-turn id exactly if the answer `ended`.

    An answer cut at the token limit did not end, and must not teach the model to stop there.
    """
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return [[*i, end] if e else list(i) for i, e in zip(ids, ended, strict=True)]


def answer_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """Text of each answer's ids, special tokens left out, spaces untouched."""
    return tokenizer.batch_decode(
        [list(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
