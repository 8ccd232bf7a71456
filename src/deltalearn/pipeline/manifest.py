"""What run.json says of a run: settings, versions, models, and which stages are done for what."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from deltalearn import __version__
from deltalearn.errors import UserError
from deltalearn.lm.clock import today
from deltalearn.util.distributed import cores
from deltalearn.util.files import now, write_json

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pyarrow")
FORMAT = 1
MANIFEST = "run.json"
RUNNING, DONE, REOPENED = "running", "done", "reopened"
LEFT = "left"  # done, for a recipe of before: it stands for nothing until the recipe has it again


@dataclass(frozen=True)
class StageRecord:
    """One stage: its state, the key and the parts of the inputs, and what it left.

    Attributes:
        inputs: Each part of the key by name, or its hash.
        seconds: Of the start that finished it.
    """

    state: str
    key: str
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    finished: str | None = None
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the record as run.json has it."""
        if self.state == RUNNING:
            return {"state": self.state, "key": self.key, "inputs": self.inputs}
        return asdict(self)


@dataclass(frozen=True)
class ModelRecord:
    """Which model it was.

    Attributes:
        commit: Of a hub model.
        server: The address at which it was asked.
    """

    path: str
    fingerprint: str
    commit: str | None = None
    server: str | None = None


@dataclass(frozen=True)
class AnswersLeft:
    """Trace of a generate stage: the mark that it left on the store, and a hash of the answers."""

    mark: str
    fingerprint: str


@dataclass
class Manifest:
    """The content of run.json, the record of a run.

    Attributes:
        day: The day that chat templates take for today, as long as the run lasts.
    """

    name: str
    recipe: dict[str, Any]
    seeds: list[int]
    format: int = FORMAT
    deltalearn: str = __version__
    versions: dict[str, str] = field(
        default_factory=lambda: {name: _version(name) for name in PACKAGES}
    )
    python: str = field(default_factory=platform.python_version)
    machine: dict[str, Any] = field(default_factory=lambda: _machine())
    created: str = field(default_factory=now)
    day: str = field(default_factory=lambda: today())
    models: dict[str, ModelRecord] = field(default_factory=dict)
    stages: dict[str, StageRecord] = field(default_factory=dict)
    answers: dict[str, AnswersLeft] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """Read a manifest; UserError if the file is none, or of another format.

        What this version does not know of is left out.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise UserError(
                    f"{file}: made by another version of deltalearn; choose another --out"
                )
            return TypeAdapter(cls).validate_python(values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not a manifest of deltalearn ({error!r})") from error

    def write(self, file: Path) -> None:
        """Write it as JSON, atomically."""
        values = vars(self) | {
            "models": {n: _given(asdict(r)) for n, r in self.models.items()},
            "stages": {n: r.as_json() for n, r in self.stages.items()},
            "answers": {n: asdict(r) for n, r in self.answers.items()},
        }
        write_json(file, values)

    def pinned(self, name: str, path: str) -> str | None:
        """Return the commit of the hub model `path` with which the run began, if it has."""
        before = self.models.get(name)
        return before.commit if before is not None and before.path == path else None


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # installed in a way that leaves no record
        return "unknown"


def _machine() -> dict[str, Any]:
    return {"platform": platform.platform(), "cpu": platform.machine(), "cores": cores()}
