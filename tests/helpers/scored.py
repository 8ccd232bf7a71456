"""A model scored on questions from its files."""

from __future__ import annotations

from typing import Any

from deltalearn.evaluate.reference.score import score_model
from deltalearn.lm.load import Placement, load_model, load_tokenizer
from deltalearn.lm.locate import ModelFiles


def score_files(files: ModelFiles, *how: Any, placement: Placement) -> list[dict[str, Any]]:
    """The rows of a model; `how`: items, and what is asked."""
    model, tokenizer = load_model(files, placement), load_tokenizer(files)
    return score_model(model, tokenizer, *how, title="t", name=files.name)
