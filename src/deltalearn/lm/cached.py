"""Ordinary model directories made of something else, once, and kept in the user's cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from deltalearn.errors import UserError, is_disk_full
from deltalearn.util.files import digest, replacing_directory, write_json

NOTE = "made.json"  # the last file of a directory: what it was made of, and its fingerprint


def cache_folder() -> Path:
    """The folder of this package in the user's cache: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltalearn"


def made_directory(
    place: str,
    content: Mapping[str, Any],
    make: Callable[[Path], None],
    where: str = "",
) -> tuple[Path, str]:
    """Find the directory that is made of something, or make it; several processes make one.

    Args:
        place: What it is made of, as the user gave it, for errors.
        content: All that decides what is in the directory; JSON.
        make: Fills an empty folder.
        where: What else tells directories apart that have the same content, a path for example.

    Returns:
        (the directory, a fingerprint of its content).

    Raises:
        UserError: If it cannot be written.
    """
    fingerprint = digest(dict(content))
    folder = cache_folder() / "models"
    directory = folder / digest([fingerprint, where])[:32]
    if _is_whole(directory):
        return directory, fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{directory.name}.lock"):
            if not _is_whole(directory):
                with replacing_directory(directory) as temporary:
                    _fill(temporary, make)
                    write_json(temporary / NOTE, {"of": content, "fingerprint": fingerprint})
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"{place}: an ordinary model directory is made of it in {folder}, where nothing can be "
            f"written ({error}); name another cache directory in XDG_CACHE_HOME"
        ) from error
    return directory, fingerprint


def _fill(temporary: Path, make: Callable[[Path], None]) -> None:
    try:
        make(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _is_whole(directory: Path) -> bool:
    """True if it was finished, and all that it links to is still there."""
    return (directory / NOTE).exists() and all(path.exists() for path in directory.iterdir())


def made_fingerprint(directory: Path) -> str | None:
    """Read the fingerprint of a directory that was made here; None for any other directory."""
    note = directory / NOTE
    if directory.resolve().parent != (cache_folder() / "models").resolve() or not note.exists():
        return None
    return str(json.loads(note.read_text(encoding="utf-8"))["fingerprint"])
