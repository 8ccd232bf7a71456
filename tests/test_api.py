"""Protects the loop from Python: the README's example runs, and importing it costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deltalearn import api
from deltalearn.errors import UserError

ROOT = Path(__file__).parents[1]


def test_the_example_of_the_readme(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 (our own page)
    assert (tmp_path / "tuned" / "final" / "model.safetensors").is_file()
    assert pq.read_table("pairs.parquet").num_rows > 8
    assert capsys.readouterr().out.rstrip().endswith("final")


def test_importing_is_light():
    code = "import sys; from deltalearn import api; print(*sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "transformers", "numpy", "pyarrow", "pydantic"} & set(modules)


def test_two_arms_are_compared(suites):
    found = api.compare(suites["better"], suites["base"], draws=500, benchmarks=["gsm8k"])
    assert [row.name for row in found.rows] == ["gsm8k"]


@pytest.mark.slow
def test_a_benchmark_that_is_none(tmp_path, lab_ladder):
    with pytest.raises(UserError, match="no-such"):
        api.evaluate(lab_ladder / "m", tmp_path / "e", benchmarks=["no-such"], limit=2)
