"""Pair two models' answers to the same prompt; drop what cannot teach, for a counted reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deltalearn.errors import UserError
from deltalearn.records import Pair, Prompt, Response

# Reasons for a drop, in the order in which they are tested.
REASONS = (
    "missing",  # no response at all
    "error",  # the engine could not answer
    "empty",  # nothing but whitespace
    "truncated",  # cut at max_tokens
    "identical",  # the same text twice: no delta
    "length_difference",  # chosen longer than rejected by more than the cap
)


@dataclass
class PairCounts:
    """Counts of candidates, of pairs, and of the others by the reason why they were dropped.

    Attributes:
        candidates: Number of candidates seen.
        pairs: Number that became pairs.
        dropped: Number dropped, by reason (REASONS).
        by_side: For one-sided reasons the side at fault: "reason:chosen", "reason:rejected" or
            "reason:both".
    """

    candidates: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    by_side: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, object]:
        """Plain numbers for the run manifest, every reason listed even when zero."""
        return {
            "candidates": self.candidates,
            "pairs": self.pairs,
            "dropped": {reason: self.dropped[reason] for reason in REASONS},
            "dropped_by_side": dict(sorted(self.by_side.items())),
        }


Candidate = tuple[Prompt, int, Response | None, Response | None]


def build_pairs(
    candidates: Iterable[Candidate],
    counts: PairCounts,
    *,
    truncated: str = "drop",
    reasoning: str = "keep",
    max_length_difference: int | None = None,
) -> Iterator[Pair]:
    """Make preference pairs, in the order of the candidates.

    A pair whose two texts are equal is never made.

    Args:
        candidates: (prompt, sample, chosen response, rejected response); None for a missing one.
        counts: Is told of every candidate.
        truncated: "drop" or "keep" pairs with an answer cut at the token limit; a kept one is
            trained without an end-of-turn token.
        reasoning: "keep" the reasoning before answers, or "strip" it.
        max_length_difference: Most tokens by which the chosen answer may be longer; each is counted
            by its own generator's tokenizer, reasoning included. None for no limit.

    Yields:
        Pairs.

    Raises:
        UserError: If lengths are compared and answers have no token counts.
    """
    for prompt, sample, *responses in candidates:
        counts.candidates += 1
        chosen, rejected = (_as_trained(r, reasoning) for r in responses)
        reason, sides = _fault(chosen, rejected, truncated, max_length_difference)
        if reason:
            counts.dropped[reason] += 1
            if sides:
                counts.by_side[f"{reason}:{'both' if len(sides) == 2 else sides[0]}"] += 1
            continue
        assert chosen is not None and rejected is not None
        counts.pairs += 1
        yield Pair(prompt.id, sample, prompt.messages, chosen, rejected)


def _as_trained(response: Response | None, reasoning: str) -> Response | None:
    """The response with what is to be taught as its text."""
    if response is None or not response.reasoning or reasoning == "strip":
        return response
    if response.finish_reason == "stop" and not response.text.strip():  # a trace is no answer
        return response
    return replace(response, text=response.reasoning + response.text, reasoning="")


def _fault(
    chosen: Response | None,
    rejected: Response | None,
    truncated: str,
    max_length_difference: int | None,
) -> tuple[str | None, Sequence[str]]:
    sides = {"chosen": chosen, "rejected": rejected}
    tests = {
        "missing": lambda r: r is None,
        "error": lambda r: r.finish_reason == "error",
        "empty": lambda r: not r.text.strip(),
        "truncated": lambda r: truncated == "drop" and r.finish_reason == "length",
    }
    for reason, test in tests.items():
        at_fault = [side for side, response in sides.items() if test(response)]
        if at_fault:
            return reason, at_fault
    assert chosen is not None and rejected is not None
    if chosen.text == rejected.text:
        return "identical", ()
    if max_length_difference is not None:
        if not (chosen.tokens and rejected.tokens):
            raise UserError(
                "max_length_difference: the answers have no token counts (imported ones often have "
                "none); leave it out"
            )
        if chosen.tokens - rejected.tokens > max_length_difference:
            return "length_difference", ()
    return None, ()
