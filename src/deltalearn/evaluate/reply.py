"""What is graded of what a model wrote: its answer; the reasoning before it is kept beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from deltalearn.lm.reasoning import Parts

UNFINISHED = "unfinished"  # reasoning without an answer
CONTROL = "control"  # a control token within the answer
LOST = "lost marks"  # reasoning and answer run together by a server


class Reply(str):
    """An answer as graders take it, a string, with what stands beside it.

    Attributes:
        reasoning: What was written before it, with its marks.
        fault: Why there is no answer, one of the kinds above; None if there is one.
    """

    __slots__ = ("fault", "reasoning")
    reasoning: str
    fault: str | None

    def __new__(cls, answer: str, reasoning: str = "", fault: str | None = None) -> Reply:
        """Make a reply; without an answer, `answer` is empty."""
        made = super().__new__(cls, answer)
        made.reasoning, made.fault = reasoning, fault
        return made

    @classmethod
    def of(cls, parts: Parts, until: Sequence[str] = ()) -> Reply:
        """Make the reply of what was written.

        Args:
            parts: What was written, taken apart.
            until: What ends an answer; it is cut at the first of them.
        """
        answer = cut(parts.answer, until)
        if parts.stray is not None and parts.stray in answer:
            return cls("", parts.reasoning + parts.answer, CONTROL)
        unfinished = bool(parts.reasoning) and not parts.answer.strip()
        return cls(answer, parts.reasoning, UNFINISHED if unfinished else None)

    @classmethod
    def read(cls, kept: Any) -> Reply:
        """Make a reply of what `kept` gave, or of a text."""
        return cls(*kept) if isinstance(kept, list | tuple) else cls(str(kept))

    def kept(self) -> list[str | None]:
        """Say it in JSON."""
        return [str(self), self.reasoning, self.fault]


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the strings that end it."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=None)]


def reply_notes(faults: Iterable[str | None]) -> list[str]:
    """Say how many replies have no answer, and why: lines for the results.

    Args:
        faults: Of each reply.
    """
    number = Counter(faults)
    told = {
        UNFINISHED: "reasoned up to the limit, or to an end, without an answer",
        CONTROL: "have a control token within the answer",
        LOST: "have reasoning and answer run together, since the server leaves the model's control "
        "tokens out; start it with the reasoning parser of the model",
    }
    return [
        f"{number[fault]:,} replies {why}: they count as empty answers"
        for fault, why in told.items()
        if number[fault]
    ]
