"""What informs people alone, and never stops the work when it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deltalearn.errors import UserError, is_disk_full

Found = TypeVar("Found")
MOST = 200  # characters of a library's error


def brief(error: BaseException, most: int = MOST) -> str:
    """Name an error of a library in one line: its kind and the beginning of its text.

    Args:
        error: What was raised.
        most: Characters of its text.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= most else text[: most - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def informed(what: str, find: Callable[[], Found], say: Callable[[str], None]) -> Found | None:
    """Find something that only informs; where that fails in any way, say so in one line.

    What decides the work is no information: a UserError and a full disk go on to the caller.

    Args:
        what: What is found, as the beginning of the line.
        find: Finds it.
        say: Gets the line.

    Returns:
        What was found, or None.
    """
    try:
        return find()
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        say(f"{what}: not known ({brief(error)}); the work goes on without it")
        return None
