"""Pretrained models of three architectures with few layers; see helpers/real_models.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.real_models import MODELS, find, shortened

from deltalearn.lm.locate import ModelFiles, locate

# One full-attention layer among Gemma's is the sixth.
LAYERS = {"smollm2": (0, 1, 2), "qwen": (0, 1), "gemma": (0, 1, 5)}


@pytest.hookimpl(tryfirst=True)  # before fixtures, so that all are skipped from one place
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests of a model that is not here; a test that names none is of the small one."""
    given = getattr(item, "callspec", None)
    named = [value for value in given.params.values() if value in MODELS] if given else []
    for name in named or ["smollm2"]:
        find(name)


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Callable[[str], ModelFiles]:
    """`short(name)`: the model with few of its layers, float32; each is written once."""
    made: dict[str, ModelFiles] = {}

    def give(name: str) -> ModelFiles:
        if name not in made:
            path: Path = tmp_path_factory.mktemp("short") / name
            made[name] = locate(str(shortened(name, LAYERS[name], path)))
        return made[name]

    return give
