"""Errors a person can act on. The command line prints their text alone and exits with code 2."""

from __future__ import annotations

import errno
import sqlite3


class UserError(Exception):
    """Something the user can mend; the message says what happened, where, and what to do next."""


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
