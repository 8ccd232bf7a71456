"""Text to ids, once and the same way for generation, training and evaluation.

A prompt is rendered by the model's own chat template with its generation header; an answer is
tokenised by itself and joined at id level, so that no token can straddle the boundary and the
mask is exact by construction (docs/pitfalls.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.encode import Encoder, puts_space_first
from deltalearn.records import Message

PROBE: tuple[Message, ...] = ({"role": "user", "content": "x"},)
PROBE_ANSWER = "Qzq"  # found again in what a template makes of it


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a chat template refuses a conversation (Gemma's takes no system turn, say)."""

    reason: str


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Render conversations by the model's chat template and tokenise them.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        names: Name of each conversation for error messages; default its number.

    Returns:
        Ids of each conversation up to and including the header of the assistant's next turn.

    Raises:
        UserError: If the template refuses a conversation.
    """
    found = []
    for i, ids in enumerate(prompt_ids_or_refusals(tokenizer, conversations)):
        if isinstance(ids, Refusal):
            name = names[i] if names else f"conversation {i}"
            raise UserError(f"{name}: {ids.reason} ({tokenizer.name_or_path})")
        found.append(ids)
    return found


def prompt_ids_or_refusals(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    arguments: Mapping[str, Any] | None = None,
) -> list[list[int] | Refusal]:
    """Like `prompt_ids`, but a conversation that the template refuses becomes a Refusal.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        arguments: Further arguments of the chat template.

    Returns:
        Ids, or a Refusal, for each conversation.
    """
    found = prompt_texts(tokenizer, conversations, arguments)
    texts = [text for text in found if isinstance(text, str)]
    # The template writes every special token itself, the BOS included.
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [next(ids) if isinstance(text, str) else text for text in found]


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    arguments: Mapping[str, Any] | None = None,
) -> list[str | Refusal]:
    """Render conversations by the model's chat template.

    Args:
        tokenizer: Has the chat template.
        conversations: Messages of each.
        arguments: Further arguments of the chat template, `tools` for example.

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
            **(arguments or {}),
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template is broken: {error}"
        ) from error
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        # Templates refuse on purpose, and trip over what they do not expect.
        if len(conversations) == 1:
            return [Refusal(f"the chat template refuses the conversation: {error}")]
        # jinja does not say which one it was; halving finds few among many quickly.
        half = len(conversations) // 2
        return [
            found
            for part in (conversations[:half], conversations[half:])
            for found in prompt_texts(tokenizer, part, arguments)
        ]


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ended: Sequence[bool]
) -> list[list[int]]:
    """Tokenise answers by themselves, byte-exact.

    Args:
        tokenizer: Has the chat template, which tells the end-of-turn id.
        texts: The answers.
        ended: For each answer, True if its model ended its turn. An answer cut at the token limit
            did not, and must not teach the model to stop there.

    Returns:
        Ids of each answer, with the end-of-turn id exactly if it ended.
    """
    end = end_of_turn(tokenizer)
    if answers_continue(tokenizer):
        found = [i.tolist() for i in Encoder(tokenizer, continuing=True).encode(texts)]
    else:
        found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*ids, end] if e else ids for ids, e in zip(found, ended, strict=True)]


def answers_continue(tokenizer: PreTrainedTokenizerBase) -> bool:
    r"""True if an answer must lose the space that the tokenizer puts before every text.

    After "<|assistant|>\n" that space would be a stray one; where the template itself writes " "
    before an answer, it is meant.
    """
    if not puts_space_first(tokenizer) or not (whole := _answered(tokenizer)):
        return False
    (prompt,) = prompt_ids(tokenizer, [PROBE])
    joint = tokenizer(whole, add_special_tokens=False)["input_ids"]
    answer = Encoder(tokenizer, continuing=True).encode([PROBE_ANSWER]).tokens.tolist()
    return joint[: len(prompt) + len(answer)] == [*prompt, *answer]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id with which the chat template ends an assistant's turn, else the tokenizer's EOS.

    The two differ for Gemma, for example, whose turns end with <end_of_turn> and not with <eos>.
    """
    _, _, after = (_answered(tokenizer) or "").rpartition(PROBE_ANSWER)
    after = after.lstrip()
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    found = max((token for token in added if after.startswith(token)), key=len, default=None)
    return tokenizer.eos_token_id if found is None else tokenizer.convert_tokens_to_ids(found)


def _answered(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The probe with its answer as the template renders it; None if it does not."""
    turns = [*PROBE, Message(role="assistant", content=PROBE_ANSWER)]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError, LookupError):
        return None


def answer_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """Decode answers, special tokens left out, spaces untouched.

    Args:
        tokenizer: The model's tokenizer.
        ids: Ids of each answer.

    Returns:
        The text of each answer.
    """
    return tokenizer.batch_decode(
        [list(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
