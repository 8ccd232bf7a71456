"""Text to ids, once and the same way for generation, training and evaluation.

A prompt is rendered by the model's own chat template with its generation header; an answer is
tokenised by itself and joined at id level, so that no token can straddle the boundary and the
mask is exact by construction (PEERS B5, B12).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from deltalearn.records import Message


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[list[int]]:
    """Ids of each conversation up to and including the header of the assistant's next turn."""
    rendered = tokenizer.apply_chat_template(
        [list(messages) for messages in conversations],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    return rendered["input_ids"]


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
