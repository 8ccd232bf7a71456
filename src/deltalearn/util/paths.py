"""Places a recipe may name: paths, and `package://module/path` for data inside a package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deltalearn.errors import UserError

PACKAGE_SCHEME = "package://"


def local_path(place: str) -> Path:
    """Turn the name of a place into a path, which need not exist.

    Args:
        place: `package://module/path`, an absolute path, `~/...`, or a relative path.

    Returns:
        The path.

    Raises:
        UserError: If the package is not installed.
    """
    if place.startswith(PACKAGE_SCHEME):
        module, _, inside = place[len(PACKAGE_SCHEME) :].partition("/")
        try:
            return Path(str(resources.files(module))) / inside
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise UserError(f"{place}: there is no Python package {module!r} here") from error
    return Path(place).expanduser()


def looked_for(place: str) -> str:
    """Where a place that is not there was looked for: the end of an error, empty if it says so."""
    if place.startswith(PACKAGE_SCHEME) or Path(place).expanduser().is_absolute():
        return ""
    return f" (looked for from {Path.cwd()})"
