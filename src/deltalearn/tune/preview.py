"""Preview of a few pairs: every token with its id, and whether it is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltalearn.lm.turn import end_of_turn
from deltalearn.tune.dataset import Example, Examples
from deltalearn.tune.tokenize import ExampleCounts
from deltalearn.util.text_format import words

WIDTH = 100
SHOWN_TOKENS = 72  # tokens of a prompt or an answer; of a longer one its first and last are shown


def preview(
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    count: int = 2,
    counts: ExampleCounts | None = None,
) -> str:
    """Show pairs as tuning will see them: the first ones, and one with an open end if any.

    Characters that a terminal would act on are written as escapes.

    Args:
        tokenizer: The student's.
        examples: Prepared pairs.
        count: Number of pairs to show.
        counts: Adds what became of all pairs.

    Returns:
        A page of plain text.
    """
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    parts = [
        f"{len(examples):,} pairs; tokens on average: prompt {examples.prompt_lengths.mean():.0f}, "
        f"chosen {examples.chosen_lengths.mean():.0f}, "
        f"rejected {examples.rejected_lengths.mean():.0f}. Each token is 'text':id."
    ]
    cut = ", or tune.truncation cut it" if counts is None or counts.cut_pairs else ""
    is_open = f"no end of turn: its generator was cut (finish reason length){cut}"
    for index in _choose(examples, count, ends):
        pair = examples[index]
        parts += ["", f"== pair {index + 1:,} " + "=" * 40]
        parts += _tokens(tokenizer, f"prompt, {len(pair.prompt)} tokens, not trained", pair.prompt)
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            end = "its last is the end of turn" if _is_closed(answer, ends) else is_open
            parts += _tokens(tokenizer, f"{side}, {len(answer)} tokens trained; {end}", answer)
    return "\n".join([*parts, *_all_pairs(counts)]) + "\n"


def visible(text: str) -> str:
    """Write every character of `text` that has no shape of its own as an escape."""
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text
    )


def _is_closed(answer: np.ndarray, ends: set[int]) -> bool:
    return int(answer[-1]) in ends


def _choose(examples: Examples, count: int, ends: set[int]) -> list[int]:
    """Places of the pairs to show; the last one shown has an open end if any pair has."""

    def is_open(pair: Example) -> bool:
        return not (_is_closed(pair.chosen, ends) and _is_closed(pair.rejected, ends))

    first = list(range(min(count, len(examples))))
    found = next((i for i, pair in enumerate(examples) if is_open(pair)), None)
    return first if found is None or found in first else [*first[:-1], found]


def _tokens(tokenizer: PreTrainedTokenizerBase, title: str, ids: np.ndarray) -> list[str]:
    """A titled block of tokens, wrapped between tokens."""

    def block(part: np.ndarray) -> list[str]:
        return _wrap([f"{_show(tokenizer, token)}:{token}" for token in part.tolist()])

    lines = ["", f"-- {title}"]
    if len(ids) <= SHOWN_TOKENS:
        return lines + block(ids)
    half = SHOWN_TOKENS // 2
    return [
        *lines,
        *block(ids[:half]),
        f"  ... {len(ids) - SHOWN_TOKENS:,} more ...",
        *block(ids[-half:]),
    ]


def _wrap(words: Sequence[str]) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH:
            lines.append("")
        lines[-1] += f"  {word}"
    return lines


def _show(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token as text in quotes; as the vocabulary spells it if it is part of a character."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if "\N{REPLACEMENT CHARACTER}" in text:
        text = tokenizer.convert_ids_to_tokens(token)
    return f"'{visible(text)}'"


def _all_pairs(counts: ExampleCounts | None) -> list[str]:
    if counts is None:
        return []
    parts = ["", f"== all pairs: {counts.pairs:,} read, {counts.examples:,} kept"]
    for reason, number in (counts.unusable | counts.dropped).items():
        if number:
            at = visible(counts.first[reason])
            parts.append(f"  dropped {number:,}: {words(reason)}, first {at}")
    for name in ("altered_answers", "special_token_answers", "assumed_ends", "cut_pairs"):
        if number := getattr(counts, name):
            parts.append(f"  {words(name)}: {number:,}")
    return parts
