"""What a model has answered, on disk: one row per request, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltalearn.util.kvstore import KeyValueStore

FILE = "model_outputs.sqlite"  # in the result directory


class Answers:
    """A model's texts and log-likelihoods by request; a group is stored whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._store = KeyValueStore[str, str](path, "outputs of an evaluated model")

    def close(self) -> None:
        """Close the SQLite file."""
        self._store.close()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are stored, by key."""
        return {key: json.loads(value) for key, value in self._store.get(keys).items()}

    def add(self, values: dict[str, Any]) -> None:
        """Store a group of values, by key."""
        self._store.add({key: json.dumps(value) for key, value in values.items()})
