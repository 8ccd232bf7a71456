"""Hashes of files, remembered by path, size and modification time in the user's cache."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from deltalearn.lm.cached import cache_folder
from deltalearn.util.files import file_digest, write_json


class FileHashes:
    """File hashes that survive the process, lest 16 GB of weights are read at every start."""

    SMALL = 1 << 20  # below this, reading again is cheaper than remembering

    def __init__(self) -> None:
        self.path = cache_folder() / "file-hashes.json"
        self.changed = False
        try:
            remembered = json.loads(self.path.read_text())
        except (OSError, ValueError):
            remembered = None
        self.hashes: dict[str, str] = remembered if isinstance(remembered, dict) else {}

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a file's content, as 64 hexadecimal digits."""
        real = path.resolve()
        stat = real.stat()
        if stat.st_size < self.SMALL:
            return file_digest(real)
        key = f"{real}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in self.hashes:
            self.hashes[key] = file_digest(real)
            self.changed = True
        return self.hashes[key]

    def save(self) -> None:
        """Remember them for the next process."""
        if not self.changed:
            return
        with suppress(OSError):  # a read-only home costs time, not correctness
            write_json(self.path, self.hashes)
