"""Pairs as Parquet in TRL's conversational preference format, plus provenance columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.records import Message, Pair, Response
from deltalearn.util.files import replacing

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROW_GROUP = 10_000  # pairs
SCHEMA = pa.schema(
    [
        ("prompt", MESSAGES),  # these three are all that TRL reads
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("chosen_model", pa.string()),
        ("rejected_model", pa.string()),
        ("chosen_finish_reason", pa.string()),
        ("rejected_finish_reason", pa.string()),
        ("chosen_tokens", pa.int32()),  # by the generator's own tokenizer, end-of-turn excluded
        ("rejected_tokens", pa.int32()),
        ("chosen_key", pa.string()),  # the response's key in the store
        ("rejected_key", pa.string()),
    ]
)


def write_pairs(
    path: Path,
    pairs: Iterable[Pair],
    chosen_model: str,
    rejected_model: str,
    template: Mapping[str, Any] | None = None,
) -> None:
    """Write pairs atomically, some thousands at a time; none at all make an empty table.

    Args:
        path: A Parquet file; replaced if it exists.
        pairs: Read once.
        chosen_model: Name of the model of the chosen answers.
        rejected_model: Name of the model of the rejected answers.
        template: Arguments of the chat template with which the prompts are to be rendered; they are
            written into each row, where TRL looks for them.
    """
    more = {"chat_template_kwargs": dict(template)} if template else {}
    schema = SCHEMA
    if more:
        kind = pa.array([more["chat_template_kwargs"]]).type
        schema = SCHEMA.append(pa.field("chat_template_kwargs", kind))
    rows = ({**_row(pair, chosen_model, rejected_model), **more} for pair in pairs)
    with replacing(path) as temporary, pq.ParquetWriter(
        temporary, schema, compression="zstd"
    ) as writer:  # fmt: skip
        first = True
        while (group := list(itertools.islice(rows, ROW_GROUP))) or first:
            first = False
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _row(pair: Pair, chosen_model: str, rejected_model: str) -> dict[str, Any]:
    return {
        "prompt": list(pair.prompt),
        "prompt_id": pair.prompt_id,
        "sample": pair.sample,
        "chosen_model": chosen_model,
        "rejected_model": rejected_model,
        **_side("chosen", pair.chosen),
        **_side("rejected", pair.rejected),
    }


def _side(side: str, response: Response) -> dict[str, Any]:
    return {
        side: [Message(role="assistant", content=response.text)],
        f"{side}_finish_reason": response.finish_reason,
        f"{side}_tokens": response.tokens,
        f"{side}_key": response.key,
    }
