"""What a judge's reply says: a preference in [1, 2] for the answers in the order it saw them.

1: the first is better, 2: the second. The readings are those of alpaca_eval's completion_parsers,
by their names, and the text alone for judges without log-probabilities. A reply that does not say
is Malformed; it is nobody's win and no tie.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 20_000  # characters of a reply that are parsed; more is no verdict
SHOWN = 100
ROUNDING = 1e-3  # a log-probability may be this far above 0


class Malformed(Exception):
    """A reply that holds no verdict; the text says why."""


@dataclass(frozen=True)
class Reply:
    """What came back for one comparison.

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
        """Of a choice of an OpenAI-compatible chat completion; with `error` if it is none."""
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
        raise Malformed(f"neither verdict: {text[:SHOWN]!r}")
    return 1.0 if text == numerator_token else 2.0


def by_pattern(reply: Reply, outputs_to_match: Mapping[int, str]) -> float:
    """The number of the pattern that occurs; there must be one occurrence in all."""
    rest, found = reply.text[:LONGEST], []
    while len(found) < 2:
        matches = [
            (m.start(), m.end(), k)
            for k, p in outputs_to_match.items()
            if (m := re.search(p, rest))
        ]
        if not matches:
            break
        _, end, key = min(matches, key=lambda match: match[0])
        found.append(key)
        rest = rest[max(end, 1) :]
    if len(found) != 1:
        raise Malformed(f"{'several verdicts' if found else 'no verdict'}: {reply.text[:SHOWN]!r}")
    return _one_or_two(found[0])


def by_ranking(reply: Reply, model_1_name: str = "model_1") -> float:
    """The rank of the first answer in a Python list of {model, rank}."""
    try:
        return _rank(ast.literal_eval(reply.text[:LONGEST].strip()), model_1_name)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Malformed(f"no list of ranks: {reply.text[:SHOWN]!r}") from None


def by_pipeline(reply: Reply, parsers_to_kwargs: Mapping[str, Mapping[str, Any]]) -> float:
    """A JSON object that holds a ranking under a key; the only pipeline that is published."""
    if list(parsers_to_kwargs) != ["json_parser", "ranking_parser"]:
        raise Malformed(f"this sequence of parsers is not supported: {list(parsers_to_kwargs)}")
    text = reply.text[:LONGEST]
    if fenced := re.search(r"```json(.*?)```", text, re.DOTALL):
        text = fenced.group(1)
    try:
        ranking = json.loads(text)[parsers_to_kwargs["json_parser"]["annotation_key"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Malformed(f"no JSON with a ranking: {text[:SHOWN]!r}") from None
    return _rank(ranking, **parsers_to_kwargs["ranking_parser"])


READERS = {
    "logprob_parser": by_logprob,
    "regex_parser": by_pattern,
    "ranking_parser": by_ranking,
    "pipeline_meta_parser": by_pipeline,
    "text": by_text,
}


def reading_problems(parser: str, options: Mapping[str, Any]) -> list[str]:
    """What keeps replies from being read this way; nothing if all is well."""
    if parser not in READERS:
        return [f"{parser} is not supported; known: {', '.join(READERS)}"]
    try:
        inspect.signature(READERS[parser]).bind(Reply(""), **options)
        for pattern in options.get("outputs_to_match", {}).values():
            re.compile(pattern)
    except (TypeError, AttributeError, re.error) as error:
        return [f"{parser} cannot be used with these options ({error})"]
    return []


def _rank(ranking: Any, model_1_name: str = "model_1") -> float:
    try:
        ranks = [row["rank"] for row in ranking if row["model"] == model_1_name]
    except (LookupError, TypeError):
        ranks = []
    if not ranks:
        raise Malformed(f"no rank of {model_1_name}")
    return _one_or_two(ranks[0])


def _one_or_two(value: Any) -> float:
    if isinstance(value, bool) or value not in (1, 2):
        raise Malformed(f"a verdict of {value!r}")
    return float(value)
