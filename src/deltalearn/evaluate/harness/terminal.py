"""What a terminal shows of the suite: a line for each benchmark, its notes, the average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deltalearn.evaluate.tulu3.suite import BY_NAME


def line(title: str, entry: Mapping[str, Any], remark: str = "") -> str:
    """A benchmark on a line, its notes on lines below.

    Args:
        title: Its name for people.
        entry: Of results.json (`Entry`).
        remark: What to add to its line.
    """
    if entry["score"] is None:
        score = "to be judged"
    else:
        error, scale, digits = entry["stderr"], *((100, 1) if entry["bounded"] else (1, 3))
        known = error is not None and math.isfinite(error)
        spread = f" +- {scale * error:.{digits}f}" if known else ""
        score = f"{scale * entry['score']:.{digits}f}{spread}"
    asked = f"{entry['shots']} shots" + ("" if entry["chat"] else ", no chat")
    if entry["max_tokens"]:
        asked += f", {entry['max_tokens']} tokens"
    if room := entry.get("reasoning_tokens"):
        asked += f" and {room:,} for reasoning"
    if entry.get("judge"):
        asked += f", judged by {entry['judge']}"
    if raw := entry.get("alpaca_eval", {}).get("win_rate"):
        length = f"{raw['mean_length']:,.0f}"
        asked += f", raw win rate {100 * raw['win_rate']:.1f}, mean length {length}"
    subset = f" of {entry['full_n']:,}: a SUBSET" if entry["subset"] else ""
    if entry["constant"]:
        subset += ", the SAME SCORE for every item"
    first = (
        f" {title:<13} {score:<14} {entry['metric']}, {entry['aggregation']}, "
        f"n {entry['n']:,}{subset}, {asked}"
    )
    return "\n".join([first + (remark and f"  ({remark})"), *map(note, entry.get("notes", ()))])


def note(text: str) -> str:
    """A note below a benchmark's line."""
    return f"{'':<15}note: {text}"


def not_run(title: str, reason: str) -> str:
    """A benchmark without a score, and why.

    Args:
        title: Its name for people.
        reason: Why it was not run.
    """
    return f" {title:<13} not run: {reason}"


def average_line(results: dict[str, Any]) -> str:
    """The average of the eleven, or why there is none."""
    found = results["average"]
    if found is None:
        return " no average: it takes all of the eleven"
    subset = ", of SUBSETS" if any(e["subset"] for e in results["benchmarks"].values()) else ""
    mmlu = BY_NAME[found["mmlu"]].title
    ten = f"{100 * found['without_alpaca_eval']:.1f} without AlpacaEval"
    if "score" not in found:
        return f" average: {ten}, which is not judged ({mmlu}{subset})"
    return f" average of the 11: {100 * found['score']:.1f}, {ten} ({mmlu}{subset})"
