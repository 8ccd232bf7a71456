"""Thinking traces: what a model writes between <think> and </think> before its answer."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
HEAD = re.compile(r"\s*<think>")
SPACE = re.compile(r"\s*")


def split_thought(written: str, opened: bool = False) -> tuple[str, str]:
    """(thought, answer) of what a model wrote; `thought + answer` is all of it.

    opened: the prompt ends with <think> already, as some chat templates have it; the mark is then
    put before the thought, so that it stands by itself. A trace without end is all thought.
    """
    begun = bool(HEAD.match(written))
    before, close, after = written.partition(CLOSE)
    # Without `opened` a closing mark alone tells of an opening one in the prompt; marks that come
    # later, in pairs, are what the answer is about.
    if not (begun or opened) and (not close or OPEN in before):
        return "", written
    thought = before if begun else OPEN + before
    space = SPACE.match(after).group()
    return thought + close + space, after[len(space) :]


def join_thought(thought: str, answer: str) -> tuple[str, str]:
    """(thought, answer) of a trace that a server gives apart, with the usual marks around it."""
    return (f"{OPEN}\n{thought}\n{CLOSE}\n\n", answer) if thought else ("", answer)


def opens_thought(prompt_end: str) -> bool:
    """Whether a rendered prompt, or its end, leaves the model inside a thought."""
    return prompt_end.rstrip().endswith(OPEN)
