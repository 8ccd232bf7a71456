"""Reasoning: what a model writes between <think> and </think> before its answer."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
HEAD = re.compile(r"\s*<think>")
# Around a closing mark that ends a trace within a line; one in blanks or quotes is talked about.
GLUED_BEFORE = re.compile(r"[^\s`'\"‘“«(\[{<>*_]?")
GLUED_AFTER = re.compile(r"[\w*#$\\]")


def split_reasoning(written: str, opened: bool = False) -> tuple[str, str]:
    """Split what a model wrote into its reasoning and its answer.

    Where nobody knows how the prompt ended (a server, a file), a closing mark alone tells of an
    opening one there, if it stands as marks do: at an end of a line, or between two words without
    a blank. Other marks, and pairs of them, are what the answer is about.

    Args:
        written: All that the model wrote.
        opened: True if the prompt ends with <think> already, as some chat templates have it. The
            mark is then put before the reasoning, so that it stands by itself.

    Returns:
        (reasoning, answer); `reasoning + answer` is all of `written`. A trace without end is all
        reasoning.
    """
    begun = bool(HEAD.match(written))
    before, close, after = written.partition(CLOSE)
    if not (begun or opened or (close and OPEN not in before and _ends_trace(before, after))):
        return "", written
    reasoning = before if begun else OPEN + before
    answer = after.lstrip()
    return reasoning + close + after[: len(after) - len(answer)], answer


def _ends_trace(before: str, after: str) -> bool:
    """Whether a closing mark between these two texts ends a trace, or is only mentioned."""
    begins_line = before.rstrip(" \t").endswith("\n")
    ends_line = after.lstrip(" \t")[:1] in ("", "\r", "\n")
    glued = GLUED_BEFORE.fullmatch(before[-1:]) and GLUED_AFTER.match(after)
    return begins_line or ends_line or bool(glued)


def join_reasoning(reasoning: str, answer: str) -> tuple[str, str]:
    """Put the usual marks around reasoning that a server gives apart from the answer.

    Args:
        reasoning: The trace without marks; may be empty.
        answer: The answer.

    Returns:
        (reasoning, answer), as `split_reasoning` gives them.
    """
    return (f"{OPEN}\n{reasoning}\n{CLOSE}\n\n", answer) if reasoning else ("", answer)


def opens_reasoning(prompt_end: str) -> bool:
    """True if a rendered prompt, or its end, leaves the model inside its reasoning."""
    return prompt_end.rstrip().endswith(OPEN)
