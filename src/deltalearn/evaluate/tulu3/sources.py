"""Rows of the benchmarks, from local files or from the hub.

Local files lie where each benchmark's `LOCAL` says, under the directory that `--data-dir`,
lm_eval's metadata `data_dir`, or the environment variable DELTALEARN_DATA_DIR names. With such a
directory nothing is asked of the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats.files import KNOWN, file_rows, suffix_of
from deltalearn.util.paths import looked_for

VARIABLE = "DELTALEARN_DATA_DIR"
Row = dict[str, Any]
Place = tuple[str, str | None, str]  # of rows in the hub: data set, configuration, split


class NoData(UserError):
    """The data of a benchmark is not there, or is not what it should be: it is left out."""


class _Read(dict):
    """A row that knows its place, so that what it lacks can be found."""

    def __init__(self, values: Row, where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise NoData(f"{self.where}: no {key!r}")


def data_directory(given: str | Path | None) -> Path | None:
    """The directory of local data, None for the hub. UserError if it is not there."""
    name = given or os.environ.get(VARIABLE)
    if not name:
        return None
    directory = Path(name).expanduser()
    if not directory.is_dir():
        raise UserError(f"{directory}: the data directory is not there{looked_for(str(directory))}")
    return directory


def files(directory: Path, benchmark: str, local: str, *patterns: str) -> list[Path]:
    """Find the files of a benchmark, by the first pattern that has any.

    Args:
        directory: Of local data.
        benchmark: Its name, for the error.
        local: Where its data lies, for the error and if there are no patterns.
        patterns: Globs under the directory.

    Raises:
        NoData: If there are none.
    """
    for pattern in patterns or (local,):
        if found := sorted(directory.glob(pattern)):
            return found
    raise NoData(f"{directory}: no data of {benchmark}; it is looked for in {local}")


def read(path: Path) -> list[Row]:
    """Rows of a .jsonl, .json or .csv file, compressed or not.

    NoData, with file and line, if they cannot be read or there is none; a key that is asked of a
    row and is not in it is NoData too.
    """
    if not suffix_of(path):
        raise NoData(f"{path}: unknown kind of file; known are {KNOWN}")
    try:
        found = list(file_rows(path))
    except UserError as error:
        raise NoData(str(error)) from error
    if not found:
        raise NoData(f"{path}: no rows in it")
    if wrong := next((row for row in found if row.problem), None):
        raise NoData(f"{wrong.where}: {wrong.problem}")
    return [_Read(row.value, row.where) for row in found]


def read_json(path: Path) -> Any:
    """The value of a JSON file that is no list of rows. NoData as of `read`."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_hook=lambda found: _Read(found, str(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise NoData(f"{path}: cannot be read ({error})") from error


def rows(
    data_dir: str | Path | None,
    benchmark: str,
    local: str,
    *patterns: str,
    at: Place | Callable[[], Iterable[Row]],
) -> Iterable[Row]:
    """Read the rows of a benchmark, of its local file or of the hub.

    Args:
        data_dir: The directory of local data, as for `data_directory`.
        benchmark, local, patterns: As for `files`.
        at: Where they are in the hub, which is asked without a directory, or what asks it.
    """
    directory = data_directory(data_dir)
    if directory is None:
        return at() if callable(at) else hub(*at)
    return read(files(directory, benchmark, local, *patterns)[0])


def hub(path: str, name: str | None, split: str) -> Iterator[Row]:
    """Read a split of a hub data set.

    Args:
        path: The data set.
        name: Its configuration, None for the only one.
        split: Of it.

    Raises:
        NoData: If it cannot be had.
    """
    import datasets

    try:
        yield from datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise NoData(
            f"{path}: the hub gave no data ({error}); give local files with --data-dir"
        ) from error


def hub_file(path: str, file: str) -> list[Row]:
    """Read one file of a hub data set, for those that are no tables.

    Args:
        path: The data set.
        file: Its path in there.

    Raises:
        NoData: If it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        place = Path(hf_hub_download(path, file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        raise NoData(
            f"{path}: the hub gave no {file} ({error}); give local files with --data-dir"
        ) from error
    return read(place)


def numbered(rows: Iterable[Row], prefix: str) -> Iterator[tuple[str, Row]]:
    """Name rows by their place in the published order, which is what names an item.

    Args:
        rows: In that order.
        prefix: What a name begins with.

    Yields:
        (name, row).
    """
    for number, row in enumerate(rows):
        yield f"{prefix}{number}", row
