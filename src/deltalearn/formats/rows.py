"""Rows of JSONL and Parquet files, of folders of them and of hub data sets, with their places."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.util.files import file_digest
from deltalearn.util.paths import PACKAGE_SCHEME, local_path

SUFFIXES = (".jsonl", ".parquet")
DEFAULT_SPLIT = "train"
SPLIT_FILE = re.compile(r"(\w[\w.-]*?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")  # as the hub names files
SAVED = ("state.json", "dataset_dict.json")  # one of them is in what `datasets` saved to disk


@dataclass(frozen=True)
class Row:
    """One raw row and where it stands; `problem` is set if it could not even be parsed."""

    where: str
    value: Any
    problem: str | None = None


def rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Read every row of a source, with its place.

    Args:
        source: A .jsonl or .parquet file, a folder of them, `package://...`, or a hub data set id.
        split: Of a hub data set; default "train".

    Yields:
        Rows, those that could not be parsed too.

    Raises:
        UserError: If there is no such source.
    """
    files = _files_of(source)
    if files is None:
        yield from _hub_rows(source, split or DEFAULT_SPLIT)
        return
    if split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on files; remove it")
    yield from file_rows(files)


def data_rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Read the rows of a source of `rows`, of a saved data set, or of a .json file of one array.

    A folder with files of several splits is read like the hub data set that it was.

    Args:
        source: As for `rows`, or one of these.
        split: Of a hub data set, or of a folder that holds several; default "train".

    Yields:
        Rows, those that could not be parsed too.
    """
    path = local_path(source)
    if path.suffix == ".json" and path.is_file():
        yield from _array_rows(source, path, split)
    elif is_saved(path):
        yield from _saved_rows(source, path, split)
    else:
        files = split_files(source, split)
        yield from rows(source, split) if files is None else file_rows(files)


def file_rows(files: Iterable[Path]) -> Iterator[Row]:
    """Yield every row of .jsonl and .parquet files, one file after the other."""
    for file in files:
        yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file)


def is_saved(folder: Path) -> bool:
    """True if `datasets` saved a data set, or several splits of one, in `folder`."""
    return any((folder / name).is_file() for name in SAVED)


def split_files(source: str, split: str | None) -> list[Path] | None:
    """Find the files of one split of a folder as it comes from the hub.

    Their names say of which split they are (`test-00000-of-00001.parquet`).

    Args:
        source: A folder.
        split: Name of the split; default "train".

    Returns:
        The files; None where the names do not name several splits.

    Raises:
        UserError: If the split is not among those that they name.
    """
    path = local_path(source)
    if not path.is_dir() or is_saved(path):
        return None
    splits: dict[str, list[Path]] = {}
    for file in _ending_in(path, SUFFIXES):
        if found := SPLIT_FILE.fullmatch(file.stem):
            splits.setdefault(found[1], []).append(file)
    if len(splits) < 2:
        return None
    if (split or DEFAULT_SPLIT) not in splits:
        raise UserError(
            f"{source}: no split {split or DEFAULT_SPLIT!r}; its files are of {', '.join(splits)}: "
            "name one as the split"
        )
    return splits[split or DEFAULT_SPLIT]


def _files_of(source: str) -> list[Path] | None:
    """The files of `source` in the order in which they are read, or None for a hub id."""
    path = local_path(source)
    if path.is_dir():
        files = _ending_in(path, SUFFIXES)
        if not files:
            raise UserError(f"{source}: no .jsonl or .parquet file in this folder")
        return files
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{source}: unknown kind of file; give .jsonl or .parquet")
        return [path]
    if path.suffix in SUFFIXES or source.startswith((".", "/", "~", PACKAGE_SCHEME)):
        raise UserError(f"{source}: no such file or folder")
    return None


def _ending_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes and p.is_file())


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


def _array_rows(source: str, path: Path, split: str | None) -> Iterator[Row]:
    """Rows of a JSON file that holds one array, as AlpacaEval's do."""
    if split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on files; remove it")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not JSON: {error}") from error
    if not isinstance(value, list):
        raise UserError(f"{source}: a JSON file must hold an array of rows; JSONL has a row a line")
    for number, row in enumerate(value, start=1):
        problem = None if isinstance(row, dict) else "an object is needed"
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # half a surrogate pair can be read only
            problem = f"not text: {error}"
        yield Row(f"{source}: row {number}", row, problem)


def _saved_rows(source: str, folder: Path, split: str | None) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise a dozen unrelated kinds
        raise UserError(f"{source}: this saved data set does not load: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        split = split or DEFAULT_SPLIT
        if split not in data:
            raise UserError(f"{source}: no split {split!r}; there are {', '.join(data)}")
        data = data[split]
    elif split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on one data set; remove it")
    for number, value in enumerate(data, start=1):
        yield Row(f"{source}: row {number}", value)


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


def source_digest(source: str, files: Sequence[Path] | None = None) -> Any:
    """Hash local data files; a hub id stands for itself (what was read is kept in the run).

    Args:
        source: A file, a folder or a hub id.
        files: Those of a folder that are read, if not all. What lies beside data is no content.

    Returns:
        JSON that changes when the data do.
    """
    path = local_path(source)
    if path.is_dir():
        files = _content(path) if files is None else files
        return {str(p.relative_to(path)): file_digest(p) for p in files}
    return file_digest(path) if path.is_file() else source


def _content(folder: Path) -> list[Path]:
    """The files of a folder that decide its rows."""
    if not is_saved(folder):
        return _ending_in(folder, SUFFIXES)
    # `datasets` puts what it computed from saved rows beside them, as cache-*.arrow.
    return [p for p in _ending_in(folder, (".arrow", ".json")) if not p.name.startswith("cache-")]
