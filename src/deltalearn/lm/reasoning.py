"""Reasoning: what a model writes before its answer, between the marks of its family.

What was written is read as text with marks in it. Where the ids are known the marks are control
tokens, found by `deltalearn.lm.control`; in the text of a server or a file they are found here, and
may be what the answer talks about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
TRACES = {  # what opens a trace, and what closes it
    OPEN: CLOSE,  # DeepSeek, Qwen, GLM, OLMo, Nemotron, ...
    "[THINK]": "[/THINK]",  # Mistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<|channel>": "<channel|>",  # Gemma 4, which writes "thought" behind it
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<mm:think>": "</mm:think>",  # MiniMax
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
}
ANSWERS = {  # what may stand around the answer behind a trace
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
}
# Harmony (gpt-oss): <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...
START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
FINAL = "final"
MARKS = frozenset([*TRACES, *TRACES.values(), *ANSWERS, *ANSWERS.values(),
                   START, CHANNEL, MESSAGE, *ENDS])  # fmt: skip
_MARK = re.compile("|".join(map(re.escape, sorted(MARKS, key=len, reverse=True))))
_HEADER = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>\s*$")
_LABEL = "thought"  # of Gemma's channel
# Around a closing mark that ends a trace within a line; one in blanks or quotes is talked about.
_GLUED_BEFORE = re.compile(r"[^\s`'\"‘“«(\[{<>*_]?")
_GLUED_AFTER = re.compile(r"[\w*#$\\]")
# Harmony without its control tokens, as a server writes it that takes them for nothing.
_WITHOUT_MARKS = re.compile(r"analysis.*?assistant(?:commentary.*?assistant)?final", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark in a text: where it begins and ends.

    Attributes:
        start: Its first character.
        end: Behind its last.
        certain: True for a control token; False for text that only looks like one.
    """

    start: int
    end: int
    certain: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """Reasoning and answer of one text, and what disturbs the answer.

    Attributes:
        reasoning: The trace with its marks, and behind an opening mark that the prompt ended with.
            `reasoning + answer` is all that was written, but for a mark that closes the answer.
        answer: What the model says; empty if the trace never ended.
        stray: A control token within the answer that has no place there.
    """

    reasoning: str
    answer: str
    stray: str | None = None


def split_reasoning(written: str, opened: str = "") -> tuple[str, str]:
    """Split text into its reasoning and its answer.

    Where nobody knows how the prompt ended (a server, a file), a closing mark alone tells of an
    opening one there, if it stands as marks do: at an end of a line, or between two words without
    a blank. Other marks, and pairs of them, are what the answer is about.

    Args:
        written: All that the model wrote.
        opened: The mark that the prompt ends with, as some chat templates have it.

    Returns:
        (reasoning, answer), as in `Parts`. A trace without end is all reasoning.
    """
    parts = take_apart(written, marks_in(written), opened)
    return parts.reasoning, parts.answer


def marks_in(text: str) -> list[Mark]:
    """Find all that looks like a mark in a text."""
    return [Mark(*found.span(), certain=False) for found in _MARK.finditer(text)]


def take_apart(written: str, marks: Sequence[Mark], opened: str = "") -> Parts:
    """Split what was written at its marks.

    Args:
        written: All of it, control tokens spelt out.
        marks: In it, in order; certain ones need not be known.
        opened: What `opening_mark` says of the prompt.

    Returns:
        The parts.
    """
    told = _Told(written, marks)
    channelled = opened.startswith(CHANNEL) or told.begins_with(START, CHANNEL, MESSAGE)
    return (_harmony if channelled else _traced)(told, opened)


def is_unfinished(reasoning: str) -> bool:
    """True for a trace that never ended."""
    opened = next((mark for mark in TRACES if reasoning.lstrip().startswith(mark)), None)
    if opened is not None:
        return TRACES[opened] not in reasoning
    return CHANNEL in reasoning and _channel(reasoning) != FINAL


def join_reasoning(reasoning: str, answer: str) -> tuple[str, str]:
    """Put the usual marks around reasoning that a server gives apart from the answer.

    Args:
        reasoning: The trace without marks; may be empty.
        answer: The answer.

    Returns:
        (reasoning, answer), as `split_reasoning` gives them.
    """
    return (f"{OPEN}\n{reasoning}\n{CLOSE}\n\n", answer) if reasoning else ("", answer)


def opening_mark(prompt_end: str) -> str:
    """The mark with which a rendered prompt, or its end, leaves the model inside its reasoning.

    Args:
        prompt_end: The end of the prompt, some tokens at least.

    Returns:
        The mark; the header of a channel for harmony, be it that of the answer; "" if there is
        none.
    """
    end = prompt_end.rstrip()
    if header := _HEADER.search(end):
        return header[0]
    bare = end.removesuffix(_LABEL).rstrip() if end.endswith(_LABEL) else end
    return next((mark for mark in TRACES if bare.endswith(mark)), "")


def lost_marks(text: str) -> bool:
    """True for harmony's channels run together, since a server has left out its control tokens."""
    return bool(_WITHOUT_MARKS.match(text))


@dataclass(frozen=True, slots=True)
class _Told:
    """A text with its marks."""

    text: str
    marks: Sequence[Mark]

    def token(self, mark: Mark) -> str:
        return self.text[mark.start : mark.end]

    def begins_with(self, *tokens: str) -> bool:
        """Whether one of these is the first thing in the text."""
        first = self.first(tokens)
        return first is not None and not self.text[: first.start].strip()

    def first(self, tokens: Iterable[str], start: int = 0) -> Mark | None:
        """The first mark that is one of these, from a place on."""
        known = set(tokens)
        found = (m for m in self.marks if m.start >= start and self.token(m) in known)
        return next(found, None)

    def parts(self, start: int, ends: Iterable[str], prefix: str = "") -> Parts:
        """The answer that begins at `start` and goes on to one of `ends`, if there is any."""
        start += len(self.text[start:]) - len(self.text[start:].lstrip()) if start else 0
        end = self.first(ends, start)
        if end is not None and (end.certain or not self.text[end.end :].strip()):
            answer, after = self.text[start : end.start], end.end
        else:
            answer, after, end = self.text[start:], len(self.text), None
        strays = (m for m in self.marks if m.certain and m.start >= start and m != end)
        stray = next(map(self.token, strays), None)
        if stray is None and end is not None and self.text[after:].strip():
            stray = self.token(end)  # it goes on behind its end
        return Parts(prefix + self.text[:start], answer, stray)


def _harmony(told: _Told, opened: str) -> Parts:
    """Channels: the message of the last one is the answer, if that is the final one."""
    if _channel(opened) == FINAL:
        return told.parts(0, ENDS)
    named = None
    for mark in told.marks:
        token = told.token(mark)
        if token == START:
            named = None
        elif token == CHANNEL:
            named = mark
        elif token == MESSAGE and _is_final(told, named, mark):
            return told.parts(mark.end, ENDS, opened)
    return Parts(opened + told.text, "")


def _is_final(told: _Told, named: Mark | None, message: Mark) -> bool:
    """Whether a message is in the final channel, or in none."""
    return named is None or _channel(told.text[named.start : message.end]) == FINAL


def _channel(header: str) -> str:
    """The channel that a header names; "" if it names none."""
    found = _HEADER.search(header)
    return found[1] if found else ""


def _traced(told: _Told, opened: str) -> Parts:
    """One trace between two marks, and the answer behind it."""
    close = None
    if told.begins_with(*TRACES):
        first = told.first(TRACES)
        assert first is not None
        opened, prefix = told.token(first), ""
    elif opened:
        prefix = opened
    else:
        close = told.first(TRACES.values())
        opened = next((o for o, c in TRACES.items() if close and c == told.token(close)), "")
        if close is None or not _ends_trace(told, close, opened):
            return _answer(told, 0, "")
        prefix = opened
    close = told.first([TRACES[opened]])
    if close is None:
        return Parts(prefix + told.text, "")
    return _answer(told, close.end, prefix)


def _answer(told: _Told, start: int, prefix: str) -> Parts:
    """The answer behind a trace, or without one, and within marks of its own if it has any."""
    mark = told.first(ANSWERS, start)
    if mark is not None and not told.text[start : mark.start].strip():
        return told.parts(mark.end, [ANSWERS[told.token(mark)]], prefix)
    return told.parts(start, (), prefix)


def _ends_trace(told: _Told, close: Mark, opens: str) -> bool:
    """Whether a closing mark without an opening one ends a trace, or is only mentioned."""
    before, after = told.text[: close.start], told.text[close.end :]
    if opens in before:
        return False
    begins_line = before.rstrip(" \t").endswith("\n")
    ends_line = after.lstrip(" \t")[:1] in ("", "\r", "\n")
    glued = _GLUED_BEFORE.fullmatch(before[-1:]) and _GLUED_AFTER.match(after)
    return close.certain or begins_line or ends_line or bool(glued)
