"""Errors a person can act on. The command line prints their text alone and exits with code 2."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend; the message says what happened, where, and what to do next."""


PLACES = {  # where nothing can be written or read, and what to do about it
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "there is no permission; choose another place, or change its permissions",
    errno.EPERM: "there is no permission; choose another place, or change its permissions",
    errno.ENOTDIR: "a file is where a folder is needed; choose another place",
    errno.EEXIST: "a file is where a folder is needed; choose another place",
    errno.EISDIR: "a folder is where a file is needed; name a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead back to itself; mend them",
}
SQLITE_PLACES = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


@contextmanager
def needs(package: str, extra: str, otherwise: str = "") -> Iterator[None]:
    """Turn a failed import of the block into a UserError that says what to install.

    Args:
        package: Who needs which package, as the beginning of a sentence.
        extra: Of ours, which brings the package.
        otherwise: What else could be done.
    """
    try:
        yield
    except ImportError as error:
        remedy = f"run `pip install -e '.[{extra}]'`{otherwise}"
        raise UserError(f"{package}, but: {error}; {remedy}") from error


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SQLITE_DISK_FULL = {  # SQLite names the step that failed for want of room, not the reason
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}


def is_disk_full(error: BaseException) -> bool:
    """True if `error` means that no more could be written (full disk, quota or file-size limit)."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", None) in SQLITE_DISK_FULL
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    # safetensors and tokenizers write from Rust and keep only the system's text.
    return "No space left on device" in str(error) or "File too large" in str(error)


def is_sqlite_place(error: BaseException | None) -> bool:
    """True if an SQLite file cannot be opened or written where it is."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF in SQLITE_PLACES


def place_fault(error: BaseException) -> str | None:
    """Say what is wrong with the place of a file or folder, with the remedy.

    Args:
        error: Whatever ended a command.

    Returns:
        One line; None if the place is not what is wrong.
    """
    if not isinstance(error, OSError) or error.errno not in PLACES:
        return None
    name = error.filename2 or error.filename
    return f"{name if name is not None else error.strerror}: {PLACES[error.errno]}"


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Raise UserError for the first option that is given: it would change nothing.

    That is a misunderstanding, and is said to be one rather than ignored.

    Args:
        options: As they are written, with their values; None and False: not given.
        why: Beside or without what it has no effect.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise UserError(f"{name} has no effect {why}; leave it out")
