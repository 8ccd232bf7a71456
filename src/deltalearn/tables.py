"""Rows of JSONL and Parquet files, of folders of them and of hub data sets, with their places."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.files import file_digest
from deltalearn.resources import PACKAGE_SCHEME, local_path

SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """One raw row and where it stands; `problem` is set if it could not even be parsed."""

    where: str
    value: Any
    problem: str | None = None


def rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Yield every row of `source` with its place. UserError if there is no such source."""
    path = local_path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise UserError(f"{source}: no .jsonl or .parquet file in this folder")
    elif path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{source}: unknown kind of file; give .jsonl or .parquet")
        files = [path]
    elif path.suffix in SUFFIXES or source.startswith((".", "/", "~", PACKAGE_SCHEME)):
        raise UserError(f"{source}: no such file or folder")
    else:
        yield from _hub_rows(source, split or "train")
        return
    if split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on files; remove it")
    for file in files:
        yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            yield _jsonl_row(f"{path}:{number}", line)


def _jsonl_row(where: str, line: bytes) -> Row:
    try:
        text = line.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        return Row(where, repr(line[:200]), f"not UTF-8: {error}")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be read only
    except UnicodeEncodeError as error:
        return Row(where, text, f"not text: {error}")
    except (ValueError, RecursionError) as error:
        return Row(where, text, f"not JSON: {error}")
    if not isinstance(value, dict):
        return Row(where, value, f"an object is needed, not {type(value).__name__}")
    return Row(where, value)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no Parquet, or damaged after row {number}: {error}") from error


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    try:
        import datasets

        data = datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub raises a dozen unrelated kinds; all mean "not to be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{source}: no file or folder of that name here, and the Hugging Face hub did not "
            f"give split {split!r} of such a data set ({type(error).__name__}: {reason})"
        ) from error
    for number, value in enumerate(data, start=1):
        yield Row(f"{source}[{split}]: row {number}", value)


def source_digest(source: str) -> Any:
    """Hash of local data files; a hub id stands for itself (what was read is kept in the run)."""
    path = local_path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return {str(p.relative_to(path)): file_digest(p) for p in files}
    return file_digest(path) if path.is_file() else source
