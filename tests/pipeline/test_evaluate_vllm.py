"""Protects that back-ends agree: the suite through a real vLLM gives what transformers give.

Greedy answers are the same to the letter, log-likelihoods to rounding; sampled programs differ.
vLLM is found in the Python that DELTALEARN_VLLM_PYTHON names, else in what `make test` has made.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn
from helpers.data import DATA, drop_data
from helpers.tiny_evaluated import CONTEXT, make

pytest.importorskip("lm_eval")

from deltalearn.evaluate.tulu3.suite import ALL

pytestmark = [pytest.mark.slow, pytest.mark.data]
MADE = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


def test_the_suite_through_vllm_equals_that_through_transformers(tmp_path):
    python = Path(os.environ.get("DELTALEARN_VLLM_PYTHON") or MADE)
    if not python.exists():
        reason = f"no Python with vLLM at {python}; `make .venv-vllm/.installed` makes one"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    place = make(tmp_path / "tiny")
    data = tmp_path / "data"
    data.mkdir()
    for source in DATA.iterdir():
        if not source.name.startswith("drop"):
            (data / source.name).symlink_to(source)
    drop_data(data)
    common = [
        "evaluate", str(place), "--data-dir", str(data), "--limit", "20", "--dtype", "float32",
        "--allow-code", "--context", str(CONTEXT),
    ]  # fmt: skip
    here = deltalearn(*common, "--out", tmp_path / "hf", "--device", "cpu", "--batch-size", "16")
    assert here.returncode == 0, here.stderr
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    there = subprocess.run(
        [python, "-m", "deltalearn", *common, "--out", tmp_path / "vllm", "--backend", "vllm",
         "--backend-option", "enforce_eager=true"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=550,
    )  # fmt: skip
    assert there.returncode == 0, there.stderr[-3000:]
    entries = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("hf", "vllm")]
    for benchmark in ALL:
        name = benchmark.name
        hf, vllm = (
            {
                r["id"]: r
                for r in pq.read_table(tmp_path / n / "items" / f"{name}.parquet").to_pylist()
            }
            for n in ("hf", "vllm")
        )
        assert hf.keys() == vllm.keys()
        for item in hf:
            assert hf[item]["prompt"] == vllm[item]["prompt"]
            if benchmark.kind in ("text", "judged"):
                assert hf[item]["output"] == vllm[item]["output"], (name, item)
            if benchmark.kind == "choice":
                a, b = (json.loads(rows[item]["output"]) for rows in (hf, vllm))
                assert a == pytest.approx(b, abs=1e-3)
        scores = [entry["benchmarks"][name]["score"] for entry in entries]
        if benchmark.kind in ("text", "choice"):
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
