"""Text to ids, once and the same way for generation, training and evaluation.

A prompt is rendered by the model's own chat template with its generation header; an answer is
tokenised by itself, behind what the template writes before answers, and joined at id level, so that
no token can straddle the boundary and the mask is exact by construction (docs/pitfalls.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.encode import Encoder
from deltalearn.lm.render import PLAIN, Refusal, prompt_texts
from deltalearn.lm.turn import turn_of
from deltalearn.records import Message, Rendering


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None = None,
    rendering: Rendering = PLAIN,
) -> list[list[int]]:
    """Render conversations by the model's chat template and tokenise them.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        names: Name of each conversation for error messages; default its number.
        rendering: Arguments and day of the template.

    Returns:
        Ids of each conversation up to and including the header of the assistant's next turn.

    Raises:
        UserError: If the template refuses a conversation.
    """
    found = []
    for i, ids in enumerate(prompt_ids_or_refusals(tokenizer, conversations, rendering)):
        if isinstance(ids, Refusal):
            name = names[i] if names else f"conversation {i}"
            raise UserError(f"{name}: {ids.reason} ({tokenizer.name_or_path})")
        found.append(ids)
    return found


def prompt_ids_or_refusals(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    rendering: Rendering = PLAIN,
) -> list[list[int] | Refusal]:
    """Like `prompt_ids`, but a conversation that the template refuses becomes a Refusal.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        rendering: Arguments and day of the template.

    Returns:
        Ids, or a Refusal, for each conversation.
    """
    found = prompt_texts(tokenizer, conversations, rendering)
    texts = [text for text in found if isinstance(text, str)]
    # The template writes every special token itself, the BOS included.
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [next(ids) if isinstance(text, str) else text for text in found]


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ended: Sequence[bool],
    rendering: Rendering = PLAIN,
) -> list[list[int]]:
    """Tokenise answers by themselves, byte-exact, behind what the template puts before them.

    Args:
        tokenizer: Has the chat template, which tells how a turn begins and ends.
        texts: The answers.
        ended: For each answer, True if its model ended its turn. An answer cut at the token limit
            did not, and must not teach the model to stop there.
        rendering: Arguments and day of the template.

    Returns:
        Ids of each answer, with the end-of-turn id exactly if it ended.

    Raises:
        UserError: If the template has no place for an answer.
    """
    turn = turn_of(tokenizer, rendering)
    placed = []
    for text in texts:
        if (found := turn.text(text)) is None:
            raise UserError(
                f"an answer begins with its reasoning ({text[:40]!r}...), which the prompt of "
                f"{tokenizer.name_or_path} has closed already"
            )
        placed.append(found)
    encoded = Encoder(tokenizer, continuing=turn.continuing).encode(placed)
    return [
        [*ids.tolist(), turn.end] if e else ids.tolist()
        for ids, e in zip(encoded, ended, strict=True)
    ]
