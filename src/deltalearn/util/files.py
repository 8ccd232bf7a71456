"""Files that are either complete or absent, and hashes of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # said now, of the name that was given, and not after all is computed
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` if the block succeeds.

    Its files may be read by whoever may read the folder: safetensors writes them for their owner
    alone, and a server that runs as somebody else could not serve a tuned model.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(temporary.stat().st_mode & 0o666)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Args:
        path: Replaced if it exists.
        text: All of it.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a file of indented JSON atomically.

    Args:
        path: Replaced if it exists.
        value: Any JSON value.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write a file with one JSON value a line, atomically; return their number.

    Args:
        path: Replaced if it exists.
        rows: JSON values, read once.
    """
    number = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line."""
    return list(read_jsonl_lazily(path))


def read_jsonl_lazily(path: Path) -> Iterator[Any]:
    """Yield one JSON value a line."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: keys in order, no spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time in UTC, as files have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have, in all its parts."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
