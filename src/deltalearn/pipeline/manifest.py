"""What run.json says of a run: settings, versions, models, and which stages are done for what."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from deltalearn import __version__
from deltalearn.errors import UserError
from deltalearn.util.files import write_json

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

    def done(self, outputs: tuple[str, ...], seconds: float, counts: dict[str, Any]) -> StageRecord:
        """Return the record of the same stage when it is done."""
        return replace(
            self, state=DONE, outputs=outputs, finished=now(), seconds=round(seconds, 2),
            counts=counts,
        )  # fmt: skip

    def reopened(self) -> StageRecord:
        """Return the record of the same stage when it must work again."""
        return replace(self, state=REOPENED)

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


Record = TypeVar("Record", StageRecord, ModelRecord, AnswersLeft)


@dataclass
class Manifest:
    """The content of run.json, the record of a run."""

    name: str
    recipe: dict[str, Any]
    seeds: list[int]
    format: int = FORMAT
    deltalearn: str = __version__
    versions: dict[str, str] = field(
        default_factory=lambda: {name: metadata.version(name) for name in PACKAGES}
    )
    python: str = field(default_factory=platform.python_version)
    machine: dict[str, Any] = field(default_factory=lambda: _machine())
    created: str = field(default_factory=lambda: now())
    models: dict[str, ModelRecord] = field(default_factory=dict)
    stages: dict[str, StageRecord] = field(default_factory=dict)
    answers: dict[str, AnswersLeft] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """Read a manifest; UserError if the file is none, or of another format."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise UserError(
                    f"{file}: made by another version of deltalearn; choose another --out"
                )
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            return cls(
                **known
                | {
                    "models": _records(ModelRecord, values.get("models", {})),
                    "stages": _records(StageRecord, values["stages"]),
                    "answers": _records(AnswersLeft, values.get("answers", {})),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def _records(kind: type[Record], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Record]:
    """Records by name; what this version does not know of is left out."""
    known = {field.name for field in fields(kind)}
    found = {}
    for name, record in values.items():
        given: dict[str, Any] = {
            k: tuple(v) if k == "outputs" else v for k, v in record.items() if k in known
        }
        found[name] = kind(**given)
    return found


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def now() -> str:
    """Return the time in UTC, as run.json has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _machine() -> dict[str, Any]:
    here = hasattr(os, "sched_getaffinity")
    return {
        "platform": platform.platform(),
        "cpu": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if here else os.cpu_count(),
    }
