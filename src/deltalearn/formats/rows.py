"""Rows of files, folders, saved data sets and hub data sets, with their places: the one reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.formats.files import KNOWN, Row, file_rows, suffix_of
from deltalearn.formats.splits import choose, read_files
from deltalearn.util.failure import brief
from deltalearn.util.files import file_digest
from deltalearn.util.paths import PACKAGE_SCHEME, local_path, looked_for

DEFAULT_SPLIT = "train"
SAVED = ("state.json", "dataset_dict.json")  # one of them is in what `datasets` saved to disk
FILES_NAMED = 4  # of a split, in a line for people


def rows(
    source: str,
    split: str | None = None,
    *,
    ignore: Collection[str] = (),
    default: str | None = DEFAULT_SPLIT,
) -> Iterator[Row]:
    """Read every row of a source, with its place.

    Args:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet, compressed or not), a folder of them, a
            folder that `datasets` saved, `package://...`, or a hub data set id.
        split: Of a hub data set, or of a folder whose names tell splits.
        ignore: Columns to leave out.
        default: The split that is taken where none is asked for; None: the only one there is.

    Yields:
        Rows, those that could not be parsed too.

    Raises:
        UserError: If there is no such source or split, or if no row has a column to ignore.
    """
    unseen = dict.fromkeys(ignore)
    for row in _all_rows(source, split, default):
        if ignore and isinstance(row.value, dict):
            value = {name: cell for name, cell in row.value.items() if name not in ignore}
            for name in row.value.keys() & unseen:
                del unseen[name]
            row = Row(row.where, value, row.problem)
        yield row
    if unseen:
        name = next(iter(unseen))
        raise UserError(f"{source}: ignore_columns: no row has a column {name!r}; remove it")


def _all_rows(source: str, split: str | None, default: str | None) -> Iterator[Row]:
    path = local_path(source)
    if is_saved(path):
        yield from _saved_rows(source, path, split, default)
    elif (files := source_files(source, split, default)) is None:
        yield from _hub_rows(source, split, default)
    else:
        for file in files:
            yield from file_rows(file)


def is_saved(folder: Path) -> bool:
    """True if `datasets` saved a data set, or several splits of one, in `folder`."""
    return any((folder / name).is_file() for name in SAVED)


def source_files(
    source: str, split: str | None = None, default: str | None = DEFAULT_SPLIT
) -> list[Path] | None:
    """Find the files of a source in the order in which they are read.

    Args:
        source: As for `rows`.
        split: As for `rows`.
        default: As for `rows`.

    Returns:
        The files; None for a hub id.

    Raises:
        UserError: If there is nothing to read.
    """
    path = local_path(source)
    if path.is_dir():
        return read_files(source, path, split, default)[1]
    if path.is_file():
        if not suffix_of(path):
            raise UserError(f"{source}: unknown kind of file; known are {KNOWN}")
        if split is not None:
            raise UserError(f"{source}: split {split!r} has no effect on files; remove it")
        return [path]
    if suffix_of(path) or source.startswith((".", "/", "~", PACKAGE_SCHEME)):
        raise UserError(f"{source}: no such file or folder{looked_for(source)}")
    return None


def files_line(
    source: str, split: str | None = None, default: str | None = DEFAULT_SPLIT
) -> str | None:
    """Write which files of a folder are read and which are not.

    Args:
        source: As for `rows`.
        split: As for `rows`.
        default: As for `rows`.

    Returns:
        A line for people; None for what is no folder.
    """
    path = local_path(source)
    if not path.is_dir() or is_saved(path):
        return None
    found, files, others = read_files(source, path, split, default)
    head = f"split {found} of {source}" if found else f"files of {source}"
    left = f"; not read: {_named(path, others)}" if others else ""
    return f"{head}: {_named(path, files)}{left}"


def _named(folder: Path, files: list[Path]) -> str:
    names = [str(file.relative_to(folder)) for file in files]
    if len(names) > FILES_NAMED:
        names = [*names[:2], f"... ({len(names) - 3} more)", names[-1]]
    return ", ".join(names)


def _saved_rows(source: str, folder: Path, split: str | None, default: str | None) -> Iterator[Row]:
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged files raise a dozen unrelated kinds
        raise UserError(f"{source}: this saved data set does not load: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        data = data[choose(source, data, split, default)]
    elif split is not None:
        raise UserError(f"{source}: split {split!r} has no effect on one data set; remove it")
    for number, value in enumerate(data, start=1):
        yield Row(f"{source}: row {number}", value)


def _hub_rows(source: str, split: str | None, default: str | None) -> Iterator[Row]:
    asked = split or default
    try:
        import datasets

        data = datasets.load_dataset(source, split=asked)
    except Exception as error:  # the hub raises a dozen unrelated kinds; all mean "not to be had"
        what = f"split {asked!r} of such a data set" if asked else "such a data set"
        raise UserError(
            f"{source}: no file or folder of that name here, and the Hugging Face hub did not "
            f"give {what} ({brief(error)})"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        asked = choose(source, data, None, None)
        data = data[asked]
    for number, value in enumerate(data, start=1):
        yield Row(f"{source}[{asked}]: row {number}", value)


def source_digest(
    source: str, split: str | None = None, default: str | None = DEFAULT_SPLIT
) -> Any:
    """Hash local data files; a hub id stands for itself (what was read is kept in the run).

    Args:
        source: A file, a folder or a hub id.
        split: As for `rows`.
        default: As for `rows`.

    Returns:
        JSON that changes when the data do, and not when what lies beside them does.

    Raises:
        UserError: If a folder has not the split.
    """
    path = local_path(source)
    if path.is_dir():
        saved = is_saved(path)
        files = _saved_files(path) if saved else source_files(source, split, default) or []
        return {str(p.relative_to(path)): file_digest(p) for p in files}
    return file_digest(path) if path.is_file() else source


def _saved_files(folder: Path) -> list[Path]:
    """The files of a saved data set, without what `datasets` computed, as cache-*.arrow."""
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".arrow", ".json") and p.is_file())
    return [p for p in found if not p.name.startswith("cache-")]
