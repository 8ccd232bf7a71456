"""Which Python runs the programs, and the few packages it may import."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from deltalearn.errors import UserError

INSIDE = Path(__file__).with_name("inside.py")
FLAGS = ("-s", "-P", "-S", "-B")  # no user's, current or installed packages; write no bytecode

# All there is of the environment. Threads cannot start, and a fixed seed of string hashes makes
# the same program behave the same in every run.
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 (the sandbox's own)
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Interpreter:
    """executable: of the Python that the environment was made from. packages: directories and
    files of the importable packages, by name.
    """

    executable: Path
    packages: dict[str, Path]

    @classmethod
    def find(cls, distributions: Sequence[str]) -> Interpreter:
        """The running Python, without its environment; UserError if a distribution is missing."""
        base = getattr(sys, "_base_executable", None) or sys.executable
        packages: dict[str, Path] = {}
        for name in distributions:
            try:
                found = metadata.distribution(name)
            except metadata.PackageNotFoundError as error:
                raise UserError(
                    f"programs may import {name}, which is not installed: pip install {name}"
                ) from error
            for top in {file.parts[0] for file in found.files or ()}:
                if top != ".." and not top.endswith((".dist-info", ".pth")):
                    packages[top] = Path(str(found.locate_file(top)))
        return cls(Path(base).resolve(), packages)

    def command(self, *settings: object) -> list[str]:
        """Run `inside.py` with `settings` as its arguments."""
        return [str(self.executable), *FLAGS, "-c", INSIDE.read_text(), *map(str, settings)]
