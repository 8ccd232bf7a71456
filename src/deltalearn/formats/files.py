"""Rows of one file: JSON (an array, or a row a line), CSV and Parquet, compressed or not."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deltalearn.errors import UserError

KINDS = {
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON",
    ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KNOWN = ".jsonl, .json, .csv, .tsv or .parquet; all but Parquet also as .gz, .bz2, .xz or .zst"
UNREADABLE = (OSError, EOFError, lzma.LZMAError)  # of a compressed file that is none, or is torn
LONGEST_CELL = 2**31 - 1  # csv's own limit is 128 KiB


@dataclass(frozen=True)
class Row:
    """One raw row and where it stands; `problem` is set if it could not even be parsed."""

    where: str
    value: Any
    problem: str | None = None


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's kind, "" if it is of no kind that is read."""
    name = path.name.lower()
    compressed = name.endswith(COMPRESSED)
    suffix = Path(name.rpartition(".")[0] if compressed else name).suffix
    return suffix if suffix in KINDS and not (compressed and suffix == ".parquet") else ""


def file_rows(path: Path) -> Iterator[Row]:
    """Yield every row of a file, those that could not be parsed too.

    Raises:
        UserError: If the file as a whole cannot be read.
    """
    kind = KINDS[suffix_of(path)]
    if kind == "Parquet":
        yield from _parquet_rows(path)
        return
    try:
        with _opened(path) as file:
            if kind == "CSV":
                yield from _csv_rows(path, file)
            else:
                yield from _json_rows(path, file, array=kind == "JSON")
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, whether or not it is compressed."""
    suffix = path.suffix.lower()
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if suffix != ".zst":
        with openers.get(suffix, open)(path, "rb") as file:
            yield file
        return
    import pyarrow

    with pyarrow.OSFile(str(path)) as raw, pyarrow.CompressedInputStream(raw, "zstd") as stream:
        yield io.BufferedReader(stream)


def _json_rows(path: Path, file: IO[bytes], *, array: bool) -> Iterator[Row]:
    """Rows of an array, or one a line; a file is what it holds, whatever it is called."""
    lines = _lines(file)
    first = next(lines, None)
    if first is None:
        return
    line = first[1]
    begins = line.lstrip()[:1]
    if begins == b"[":
        following = next(lines, None)
        lines = itertools.chain([] if following is None else [following], lines)
        if array or _is_array(line, following):
            content = b"\n".join(part for _, part in itertools.chain([first], lines))
            yield from _array_rows(path, content)
            return
    if array and _jsonl_row("", line).problem:
        raise UserError(
            f"{path}: a JSON file must hold an array of rows, or a row a line; "
            f"its first line is neither: {_jsonl_row('', line).problem}"
        )
    for number, text in itertools.chain([first], lines):
        yield _jsonl_row(f"{path}:{number}", text)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) of all that are not blank, without a byte order mark."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _is_array(line: bytes, following: Any) -> bool:
    """Whether a first line that begins with a bracket begins an array of rows.

    Else it is a row by itself, which is a list and no object.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return True
    return following is None and all(isinstance(row, dict) for row in value)


def _array_rows(path: Path, content: bytes) -> Iterator[Row]:
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: begins as a JSON array, and is not JSON: {error}") from error
    for number, row in enumerate(value, start=1):
        yield _checked(f"{path}: row {number}", row, row)


def _jsonl_row(where: str, line: bytes) -> Row:
    try:
        text = line.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        return Row(where, repr(line[:200]), f"not UTF-8: {error}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Row(where, text, f"not JSON: {error}")
    return _checked(where, value, text)


def _checked(where: str, value: Any, raw: Any) -> Row:
    try:
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can be read only
    except (UnicodeEncodeError, RecursionError) as error:
        return Row(where, raw, f"not text: {error}")
    if not isinstance(value, dict):
        return Row(where, value, f"an object is needed, not {type(value).__name__}")
    return Row(where, value)


def _csv_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Rows of a table with a header. An empty cell is no value."""
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    table = csv.reader(text, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
    number = 0
    try:
        header = next(table, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}: two columns of one name in {', '.join(header)}")
        number = table.line_num
        for cells in table:
            where, number = f"{path}:{number + 1}", table.line_num
            value = {n: c or None for n, c in zip(header, cells, strict=False)}
            wrong = f"{len(cells)} cells where the header has {len(header)}"
            if cells:
                yield Row(where, value, wrong if len(cells) != len(header) else None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no UTF-8 CSV after line {number}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        decode = {f.name: d for f in table.schema_arrow if (d := _decoder(f)) is not None}
        for batch in table.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield _decoded(f"{path}: row {number}", value, decode)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no Parquet, or damaged after row {number}: {error}") from error


Decoder = Callable[[Any], Any]


def _decoded(where: str, value: dict[str, Any], decode: dict[str, Decoder]) -> Row:
    """A row whose JSON is read: text there is how Arrow stores values of any form."""
    for name, decoder in decode.items():
        try:
            value[name] = decoder(value[name])
        except (ValueError, RecursionError) as error:
            return Row(where, value, f"column {name!r} is of type JSON, and is not JSON: {error}")
    return Row(where, value)


def _decoder(field: Any) -> Decoder | None:
    """How values of an Arrow field are read; None: as they are.

    Arrow's JSON type, the `Json` of `datasets`, may stand at any depth.
    """
    import pyarrow

    kind = field.type
    marked = (field.metadata or {}).get(b"ARROW:extension:name") == b"arrow.json"
    if marked or getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if isinstance(kind, pyarrow.StructType):
        inner = {f.name: d for f in kind if (d := _decoder(f)) is not None}
        if not inner:
            return None
        return lambda row: row and row | {name: read(row[name]) for name, read in inner.items()}
    if (element := getattr(kind, "value_field", None)) is not None and hasattr(kind, "value_type"):
        item = _decoder(element)
        return (lambda cells: cells and [item(cell) for cell in cells]) if item else None
    return None
