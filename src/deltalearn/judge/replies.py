"""What a judge's reply says: a preference in [1, 2] for the responses in the order it saw them.

1: the first is better, 2: the second. It is read from the log-probabilities of the token that says
which (alpaca_eval's logprob_parser), or from the text alone for judges without log-probabilities. A
reply that does not say is Malformed; it is nobody's win and no tie.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_REPLY_CHARS = 100  # in an error
ROUNDING = 1e-3  # a log-probability may be this far above 0


class Malformed(Exception):
    """A reply that holds no verdict; the text says why."""


@dataclass(frozen=True)
class Reply:
    """A judge's reply to one comparison.

    logprobs: {token: log-probability} of the likeliest tokens at each position, None if the judge
    does not give them. error: why there is no reply, if the judge could not be asked; unreached:
    whether it never saw the question (no connection, a server in trouble), so that asking it again
    is what to do, and the comparison may not be left out of a win rate.
    """

    text: str
    logprobs: tuple[Mapping[str, float], ...] | None = None
    error: str | None = None
    unreached: bool = False

    @staticmethod
    def from_choice(choice: Mapping[str, Any]) -> Reply:
        """Read a choice of an OpenAI-compatible chat completion; with `error` if it is none."""
        try:
            message = choice["message"]
            text = message.get("content") or ""
            if calls := message.get("tool_calls"):
                text = calls[0]["function"]["arguments"]
            given = (choice.get("logprobs") or {}).get("content")
            logprobs = given and tuple(
                {str(t["token"]): float(t["logprob"]) for t in position["top_logprobs"]}
                for position in given
            )
            return Reply(str(text), logprobs or None)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            return Reply("", error=f"not a chat completion ({type(error).__name__}: {error})")


def by_logprob(
    reply: Reply,
    numerator_token: str,
    denominator_tokens: Sequence[str],
    is_binarize: bool = True,
    log_prob_index: str | int = "batch",
) -> float:
    """2 - P(numerator) / P(denominators), at one position ("batch": the only one)."""
    positions = reply.logprobs
    if not positions:
        raise Malformed("no log-probabilities; does the judge give them (logprobs, top_logprobs)?")
    if log_prob_index == "batch":
        if len(positions) != 1:
            raise Malformed(f"{len(positions)} tokens where one is the verdict")
        log_prob_index = 0
    top = positions[int(log_prob_index)]
    found = {t: top[t] for t in {numerator_token, *denominator_tokens} if t in top}
    if any(math.isnan(v) or v > ROUNDING for v in found.values()):
        raise Malformed(f"no log-probabilities: {found}")
    best = max((found[t] for t in denominator_tokens if t in found), default=-math.inf)
    if best == -math.inf:
        raise Malformed(f"none of {sorted({*denominator_tokens})} among the likeliest tokens")
    chance = {t: math.exp(v - best) for t, v in found.items()}
    whole = sum(chance.get(t, 0.0) for t in denominator_tokens)
    first = chance.get(numerator_token, 0.0)
    if is_binarize:
        others = [chance.get(t, 0.0) for t in denominator_tokens if t != numerator_token]
        return 1.0 if all(first > other for other in others) else 2.0
    return 2 - first / whole


def by_text(
    reply: Reply, numerator_token: str, denominator_tokens: Sequence[str], **_: Any
) -> float:
    """1 or 2: the reply is one of the tokens of `by_logprob` and nothing else."""
    text = reply.text.strip()
    if text not in {numerator_token, *denominator_tokens}:
        raise Malformed(f"neither verdict: {text[:MAX_REPLY_CHARS]!r}")
    return 1.0 if text == numerator_token else 2.0


READERS: dict[str, Callable[..., float]] = {"logprob_parser": by_logprob, "text": by_text}


def reading_problems(parser: str, options: Mapping[str, Any]) -> list[str]:
    """List what keeps replies from being read this way; nothing if all is well."""
    if parser not in READERS:
        return [f"its replies are read by {parser}, which is not supported; logprob_parser is"]
    try:
        inspect.signature(READERS[parser]).bind(Reply(""), **options)
    except TypeError as error:
        return [f"{parser} cannot be used with these options ({error})"]
    return []
