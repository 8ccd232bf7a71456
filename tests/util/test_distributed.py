"""Protects children of a launcher's process: whoever works by itself is told of no launcher."""

from __future__ import annotations

import os
import stat

import pytest

from deltalearn.errors import UserError
from deltalearn.generate.engines.vllm_offline import VllmEngine, VllmOptions
from deltalearn.lm.locate import locate
from deltalearn.records import Sampling
from deltalearn.util.distributed import alone, own_environment

TOLD = {  # by torchrun and accelerate
    "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "ROLE_RANK": "0", "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "ROLE_WORLD_SIZE": "2",
    "ROLE_NAME": "default", "MASTER_ADDR": "localhost", "MASTER_PORT": "9",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none",
    "ACCELERATE_MIXED_PRECISION": "no",
}  # fmt: skip


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANKING", "kept")


def test_alone_for_as_long_as_the_block_lasts():
    with pytest.raises(ZeroDivisionError), alone():
        assert not TOLD.keys() & os.environ.keys()
        assert os.environ["RANKING"] == "kept"
        _ = 1 / 0
    assert TOLD.items() <= os.environ.items()
    assert own_environment() == {k: v for k, v in os.environ.items() if k not in TOLD}


def test_the_worker_of_vllm_is_told_of_no_launcher(tiny_model, tmp_path):
    """Else it waits at the launcher's store for processes of its own that nobody starts."""
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nexec env -0 > {told}\n",
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    engine = VllmEngine(locate(str(tiny_model)), Sampling(0.0, 1.0, 9), VllmOptions(str(python)))
    with pytest.raises(UserError, match="vLLM's process ended"):
        engine.start()
    names = {line.partition("=")[0] for line in told.read_text().split("\0")}
    assert "RANKING" in names
    assert not names & {*TOLD, "PYTHONPATH"}
