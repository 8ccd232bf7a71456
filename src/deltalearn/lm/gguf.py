"""GGUF files as a source of models: an ordinary directory is made of each, once.

Everything that reads a model's files then finds what it looks for, and every engine takes it.
Imports neither torch nor transformers until there is something to make.
"""

from __future__ import annotations

import re
from pathlib import Path

from deltalearn.lm.cached import made_directory
from deltalearn.lm.gguf_header import SUFFIX
from deltalearn.lm.hashes import FileHashes

FORMAT = 1  # of what is written: another number makes every directory anew
OF_HUB = re.compile(rf"(?P<id>[\w.-]+/[\w.-]+)/(?P<file>.+{re.escape(SUFFIX)})", re.IGNORECASE)


def is_gguf(place: str) -> bool:
    """Tell by its name whether a place is a GGUF file, here or in a repository of the hub."""
    return place.lower().endswith(SUFFIX)


def file_of_hub(place: str) -> tuple[str, str] | None:
    """Take `owner/name/file.gguf` apart into hub id and file; None for any other place."""
    found = OF_HUB.fullmatch(place)
    return (found["id"], found["file"]) if found else None


def gguf_directory(place: str, file: Path) -> tuple[Path, str]:
    """Find the directory that was made of a GGUF file, or make it.

    Args:
        place: The model, for errors.
        file: The file.

    Returns:
        (the directory, a fingerprint of the file's content).

    Raises:
        UserError: If it is no whole GGUF file, or transformers cannot read it.
    """
    hashes = FileHashes()
    content = {"gguf": hashes.hash_of(file), "format": FORMAT}
    hashes.save()

    def make(directory: Path) -> None:
        from deltalearn.lm.gguf_convert import convert

        convert(place, file, directory)

    return made_directory(place, content, make)
