"""What results hold of a benchmark: its entry in results.json, and a row for each item."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class ItemRow(TypedDict):
    """One item with its score: a row of the Parquet file of a benchmark."""

    id: str
    stratum: str  # a macro average is over these; "" where there is one
    cluster: str  # what items share that were drawn together; "" for none
    score: float
    prompt: str
    output: str  # what is graded: the answer
    reasoning: NotRequired[str]  # written before it, with its marks; "" for none
    extracted: str  # the answer that was found in the output
    gold: str
    question: NotRequired[str]  # without the examples; not in the file


class Entry(TypedDict, total=False):
    """Benchmark of results.json, as far as results are read again; docs/evaluation.md has all."""

    title: str
    kind: str
    metric: str
    aggregation: str  # macro or micro
    bounded: bool  # scores are in [0, 1]
    unit: str  # of scores that are not, if it is known
    constant: bool  # all items have the same score
    score: float | None  # None: AlpacaEval that is not judged
    stderr: float | None
    n: int
    full_n: int
    subset: bool
    shots: int
    chat: bool
    max_tokens: int | None
    reasoning_tokens: int  # beyond max_tokens, for reasoning alone; absent: none
    stops: list[str]
    judge: str | None
    notes: list[str]
    alpaca_eval: dict[str, Any]
