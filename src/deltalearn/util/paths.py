"""Places a recipe may name: paths, and `package://module/path` for data inside a package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from deltalearn.errors import UserError

PACKAGE_SCHEME = "package://"


def local_path(place: str, base: Path | None = None) -> Path:
    """Turn `place` into a path: package data, absolute, `~`, or relative to `base` (default: cwd).

    Raises UserError if the package is not installed. The path itself need not exist.
    """
    if place.startswith(PACKAGE_SCHEME):
        module, _, inside = place[len(PACKAGE_SCHEME) :].partition("/")
        try:
            return Path(str(resources.files(module))) / inside
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise UserError(f"{place}: there is no Python package {module!r} here") from error
    path = Path(place).expanduser()
    return path if path.is_absolute() or base is None else base / path
