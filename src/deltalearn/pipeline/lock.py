"""One command at a time in a directory; the second is told who is there."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deltalearn.errors import UserError
from deltalearn.pipeline.manifest import MANIFEST, now

LOCK = ".lock"


class Hold:
    """A directory, made if need be, in which this process alone works: a context manager.

    The lock file says who that is. Folders that were made and left empty are removed again.
    UserError, at the start, if another process works there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = _make(path)
        self._lock = FileLock(path / LOCK)
        there = _holder(path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{path}: another deltalearn process is running here{there}; wait until it ends"
            ) from None
        with suppress(OSError):  # a full disk: who comes second learns less
            (path / LOCK).write_text(json.dumps(_me()) + "\n", encoding="utf-8")

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others work here."""
        with suppress(OSError):
            os.truncate(self.path / LOCK, 0)
        self._lock.release()
        for folder in self._made:
            if folder.is_dir() and all(entry.name == LOCK for entry in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep runs out of the directory `path` while the block works in it, if it is one of a run.

    UserError if one works there now: what it is about to store must not come from elsewhere.
    """
    if not any((path / name).exists() for name in (MANIFEST, LOCK)):
        yield
        return
    with Hold(path):
        yield


def _make(path: Path) -> list[Path]:
    """Make a directory; which folders were not there before, the innermost first."""
    if path.is_file():
        raise UserError(f"{path}: a file is in the way of the output directory")
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made


def _me() -> dict[str, object]:
    words = ["deltalearn", *sys.argv[1:]] if sys.argv else []
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": shlex.join(words),
        "since": now(),
    }


def _holder(file: Path) -> str:
    """Who holds a lock, in brackets; empty if its file does not say."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return (
            f" (process {said['pid']} on {said['host']} since {said['since']}: {said['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""
