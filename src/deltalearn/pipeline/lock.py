"""One command at a time in a directory; the second is told who is there."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from deltalearn.errors import PLACES, UserError, place_fault
from deltalearn.pipeline.manifest import MANIFEST
from deltalearn.util.files import now

LOCK = ".lock"


class Hold:
    """A directory, made if need be, in which this process alone works: a context manager.

    The lock file says who that is. Folders that were made and left empty are removed again.
    UserError, at the start, if another process works there, or if nobody can write there.

    Attributes:
        to_read: Whether the directory is only read: it is there, and cannot be written. Nothing is
            locked then.
    """

    def __init__(self, path: Path, *, may_read: bool = False) -> None:
        self.path = path
        self.to_read = may_read and path.is_dir() and not os.access(path, os.W_OK | os.X_OK)
        self._made: list[Path] = []  # the innermost first
        self._lock = FileLock(path / LOCK)
        if self.to_read:
            return
        check_place(path)
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
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
        if self.to_read:
            return
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


def check_place(path: Path) -> None:
    """Raise UserError if a directory cannot be made, or not be written."""
    if path.is_file():
        raise UserError(f"{path}: a file is in the way of the output directory")
    try:
        there = next(
            folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder)
        )
    except OSError as error:
        raise UserError(place_fault(error) or str(error)) from error
    if not there.is_dir():
        raise UserError(f"{path}: {there} is no folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        why = PLACES[errno.EROFS if read_only else errno.EACCES]
        raise UserError(f"{path}: nothing can be written in {there}: {why}")


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
