"""Export of a store: a row for each answer, to JSONL or Parquet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.responses.store import RESPONSE, Group, ResponseStore, response_of
from deltalearn.util.files import replacing, write_jsonl

ROWS_PER_GROUP = 2000  # rows written together
SUFFIXES = (".jsonl", ".parquet")
COLUMNS: dict[str, Any] = {  # of a row, and what their cells may be
    "model": str, "messages": object, "response": str, "reasoning": str | None,
    "finish_reason": str, "error": str | None, "fault": str | None, "prompt_id": str,
    "sample": int, "prompt_tokens": int, "completion_tokens": int | None, "token_ids": object,
    "seconds": int | float | None, "seed": str | None, "tries": int | None, "engine": str | None,
    "identity": str, "settings": str, "key": str,
}  # fmt: skip


def export(store: ResponseStore, path: Path, models: Iterable[str] = ()) -> int:
    """Write answers, errors too, to a file, a row each.

    `import_responses` reads the file back as it was. Only the time at which an answer came is not
    written; after an import it is that of the import.

    Args:
        store: Where the answers are.
        path: A .jsonl or .parquet file; replaced if it exists.
        models: Names or identities; none means all.

    Returns:
        Number of rows.

    Raises:
        UserError: If there is no such model, or if the file has another ending.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: answers are written to a .jsonl or a .parquet file")
    wanted = [group for name in models for group in store.named(name)]
    found = _export_rows(store, wanted)
    return write_jsonl(path, found) if path.suffix == ".jsonl" else _write_parquet(path, found)


def _export_rows(store: ResponseStore, wanted: list[Group]) -> Iterator[dict[str, Any]]:
    # By the tables, not the view `labels`: it reads an index, and answers may have to be saved
    # from a store whose index is damaged.
    given = store.db.execute("SELECT model, settings, name FROM names ORDER BY id")
    labels = {(model, settings): name for model, settings, name in given}
    query = (
        "SELECT r.model, r.settings, m.name, m.identity, p.messages, s.json, r.sample, "  # noqa: S608
        f"r.prompt_id, r.engine, {RESPONSE} "
        "FROM responses r JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt "
        "JOIN settings s ON s.id = r.settings "
        "WHERE ?1 = '[]' OR (r.model, r.settings) IN (SELECT json_extract(value, '$[0]'), "
        "json_extract(value, '$[1]') FROM json_each(?1)) ORDER BY r.id"
    )
    groups = json.dumps([[group.model, group.settings] for group in wanted])
    cursor = store.db.cursor().execute(query, [groups])
    for model, settings, name, identity, messages, settings_json, sample, *rest in cursor:
        prompt_id, engine, *columns = rest
        r = response_of(tuple(columns))
        yield {
            "model": labels.get((model, settings), name),
            "messages": json.loads(messages),
            "response": r.text,
            "reasoning": r.reasoning,
            "finish_reason": r.finish_reason,
            "error": r.error,
            "fault": r.fault,
            "prompt_id": prompt_id,
            "sample": sample,
            "prompt_tokens": r.prompt_tokens,
            "completion_tokens": r.tokens if r.token_ids else r.completion_tokens,
            "token_ids": list(r.token_ids),
            "seconds": r.seconds,
            "seed": None if r.seed is None else str(r.seed),
            "tries": r.tries,
            "engine": engine,
            "identity": identity,
            "settings": settings_json,
            "key": r.key,
        }


def _write_parquet(path: Path, found: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.int64()
    kinds = {
        "messages": pa.list_(pa.struct([("role", text), ("content", text)])),
        "token_ids": pa.list_(number),
        "seconds": pa.float64(),
        **{name: number for name, kind in COLUMNS.items() if kind in (int, int | None)},
    }
    schema = pa.schema([(name, kinds.get(name, text)) for name in COLUMNS])
    count = 0
    with replacing(path) as temporary, pq.ParquetWriter(
        temporary, schema, compression="zstd"
    ) as writer:  # fmt: skip
        while group := list(itertools.islice(found, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count
