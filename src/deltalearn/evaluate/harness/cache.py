"""What a model has answered, on disk: one row per request, so that a killed run goes on."""

from __future__ import annotations

from pathlib import Path

from deltalearn.util.kvstore import JsonStore

FILE = "model_outputs.sqlite"  # in the result directory


class Answers(JsonStore):
    """A model's texts and log-likelihoods by request; a group is stored whole or not at all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "outputs of an evaluated model")
