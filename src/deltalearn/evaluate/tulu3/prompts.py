"""Turns of the suite's prompts that a template cannot say."""

from __future__ import annotations

import json

from deltalearn.evaluate.tulu3.sources import Row

SUMMARIZE = (
    "The following are multiple choice questions about {subject}. Summarize your reasoning "
    "concisely, then conclude with 'Therefore, the answer is: X' where X is one of A, B, C, or D."
    "\n\n"
)


def target(item: Row) -> str:
    """The assistant's turn of an example, as it is: a template would read `[...]` as a list."""
    return item["target"]


def mmlu_mc(item: Row) -> str:
    """Question and choices; before the first example the subject."""
    return f"{item['head']}{_question(item)}\nAnswer:"


def mmlu_cot(item: Row) -> str:
    """Instruction, question and choices."""
    return SUMMARIZE.format(subject=item["stratum"]) + _question(item)


def _question(item: Row) -> str:
    options = zip("ABCD", json.loads(item["choices"]), strict=True)
    return f"Question: {item['question']}\n" + "\n".join(f" {x}. {text}" for x, text in options)
