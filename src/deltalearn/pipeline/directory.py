"""One run, one directory: its manifest (run.json), and which stages are done for which inputs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deltalearn import __version__
from deltalearn.errors import UserError
from deltalearn.recipe.load import LoadedRecipe
from deltalearn.util.files import write_json, write_text

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pyarrow")
FORMAT = 1
LOCK = ".lock"


class RunDirectory:
    """A locked run directory whose manifest is rewritten after every stage."""

    def __init__(
        self,
        path: Path,
        loaded: LoadedRecipe,
        *,
        update: bool = False,
        may_hold: Sequence[str] = (),
        free: Collection[str] = (),
        hold: bool = False,
    ) -> None:
        """Create or reopen `path` for a recipe.

        may_hold: names of files that a directory may have before its first run. free: dotted
        settings with which a run may go on when they are others. hold: say of other settings only
        at the next save, so that they describe what is there. Raises UserError if another process
        works in it, if it holds something else, or if it holds a run of other settings (of which a
        stage has begun) and `update` is not set (a run of another name: always).
        """
        self.path = path
        self.done_now = 0  # stages that had to work in this process
        existing = _existing_manifest(path, may_hold)
        recipe = loaded.recipe.model_dump(mode="json")
        if existing:
            _check_same(path, existing, recipe, update, free)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": loaded.recipe.name,
            "deltalearn": __version__,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": (existing or {}).get("machine", _machine()),
            "created": (existing or {}).get("created", _now()),
            "seeds": list(loaded.recipe.seeds),
            "recipe": recipe,
            "models": (existing or {}).get("models", {}),
            "stages": (existing or {}).get("stages", {}),
            "answers": (existing or {}).get("answers", {}),  # what stages left in the store
        }
        self.manifest = (existing or {}) | self.manifest  # what one command notes for itself
        changed = existing is None or existing["recipe"] != recipe
        self._unsaid = loaded.resolved_yaml() if changed else None
        if changed and not (hold and existing):
            self.save()

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def save(self) -> None:
        """Write run.json, and recipe.yaml if it is another one."""
        if self._unsaid is not None:
            write_text(self.path / "recipe.yaml", self._unsaid)
            self._unsaid = None
        write_json(self.path / "run.json", self.manifest)

    def is_done(self, stage: str, key: str) -> bool:
        """Whether `stage` finished for the inputs `key` and its outputs are still there."""
        record = self.manifest["stages"].get(stage)
        if record is None or record["key"] != key or record["state"] != "done":
            return False
        return all((self.path / output).exists() for output in record["outputs"])

    def counts(self, stage: str) -> dict[str, Any]:
        """The counts that a finished stage left."""
        return self.manifest["stages"][stage]["counts"]

    def errors(self) -> int:
        """Requests of all models that ended in errors."""
        stages = self.manifest["stages"].items()
        counts = (r.get("counts", {}) for name, r in stages if name.startswith("generate/"))
        return sum(c.get("errors", 0) for c in counts)

    def reopen(self, stage: str) -> None:
        """Let a stage that is done work again: what it left is not there any more."""
        self.manifest["stages"][stage]["state"] = "reopened"

    def stage(
        self,
        name: str,
        key: str,
        outputs: Sequence[str],
        work: Callable[[], dict[str, Any]],
        scratch: str | None = None,
    ) -> bool:
        """Run `work` unless `name` is done for `key`; record its counts. Return whether it ran.

        What an earlier, other version of the stage left in `scratch` is deleted first.
        """
        if self.is_done(name, key):
            return False
        before = self.manifest["stages"].get(name)
        if scratch and before and before["key"] != key:
            shutil.rmtree(self.path / scratch, ignore_errors=True)
        self.manifest["stages"][name] = {"state": "running", "key": key}
        self.save()
        start = time.monotonic()
        counts = work()
        self.done_now += 1
        self.manifest["stages"][name] = {
            "state": "done",
            "key": key,
            "outputs": list(outputs),
            "finished": _now(),
            "seconds": round(time.monotonic() - start, 2),
            "counts": counts,
        }
        self.save()
        return True

    def forget_others(self, stages: Iterable[str]) -> None:
        """Drop records of stages that the recipe no longer has (after an update)."""
        keep = set(stages)
        known = self.manifest["stages"]
        if stale := [name for name in known if name not in keep]:
            for name in stale:
                del known[name]
            self.save()


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Keep runs out of the directory `path` while the block works in it, if it is one of a run.

    UserError if one works there now: what it is about to store must not come from elsewhere.
    """
    if not any((path / name).exists() for name in ("run.json", LOCK)):
        yield
        return
    lock = _locked(path)
    try:
        yield
    finally:
        lock.release()


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{path}: another deltalearn process is running here; wait until it ends"
        ) from None
    return lock


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def _existing_manifest(path: Path, may_hold: Sequence[str]) -> dict[str, Any] | None:
    if path.is_file():
        raise UserError(f"{path}: a file is in the way of the output directory")
    if not path.is_dir():
        return None
    manifest = path / "run.json"
    if not manifest.is_file():
        if any(e.name not in may_hold and not e.name.startswith(".") for e in path.iterdir()):
            raise UserError(
                f"{path}: not empty and not a run of deltalearn (no run.json); choose another --out"
            )
        return None
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        readable = value["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: not a manifest of deltalearn ({error!r})") from error
    if not readable:
        raise UserError(f"{manifest}: made by another version of deltalearn; choose another --out")
    return value


def _check_same(
    path: Path, existing: dict[str, Any], new: dict[str, Any], update: bool, free: Collection[str]
) -> None:
    old = existing["recipe"]
    if old["name"] != new["name"]:
        raise UserError(
            f"{path}: holds the run of another recipe ({old['name']!r}, this one is "
            f"{new['name']!r}); choose another --out"
        )
    changed = sorted(set(_differences(old, new)) - set(free))
    if changed and existing["stages"] and not update:
        raise UserError(
            f"{path}: holds a run with other settings ({', '.join(changed)}). Pass --update to "
            "run again what depends on them (answers and their scores are kept), or choose "
            "another --out."
        )


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            dotted = f"{prefix}.{key}" if prefix else key
            found += _differences(old.get(key), new.get(key), dotted)
        return found
    return [] if old == new else [prefix]


def stage_line(name: str, record: dict[str, Any]) -> str:
    """What a person reads of a stage when it is done."""
    return f"{name:<28} {record['seconds']:>7.1f} s  {counts_line(record['counts'])}"


SHOWN_OF_LAST_STEP = ("loss", "margin", "accuracy")


def counts_line(counts: dict[str, Any]) -> str:
    """Counts on one line, zeros left out; of the last training step only what tells most."""
    parts = []
    for name, value in counts.items():
        if name == "last":
            shown = [f"{k} {value[k]:.3f}" for k in SHOWN_OF_LAST_STEP if k in value]
            parts.append(f"last step: {', '.join(shown)}")
        elif isinstance(value, dict):
            inner = [f"{k} {v:,}" for k, v in value.items() if v]
            parts += [f"{name}: {', '.join(inner)}"] if inner else []
        elif isinstance(value, str):
            continue  # said when it was decided
        elif isinstance(value, int):
            parts += [f"{name} {value:,}"] if value else []
        else:
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts).replace("_", " ")
