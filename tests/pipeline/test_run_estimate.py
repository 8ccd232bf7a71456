"""Protects `deltalearn run --dry-run`: what it counts is what the run then does.

The numbers of a real small run are held against those foretold; the paper's recipe is estimated
without network; what is missing is named with its remedy, and nothing is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails, small

from deltalearn.errors import UserError
from deltalearn.pipeline import missing
from deltalearn.pipeline.missing import what_is_missing
from deltalearn.pipeline.run_estimate import estimate_run
from deltalearn.pipeline.run_options import Rates, RunOptions
from deltalearn.recipe import load_recipe


def section(text: str, name: str) -> str:
    """The block of one stage."""
    (found,) = [block for block in text.split("\n\n") if block.startswith(name)]
    return found


def row(text: str, name: str) -> list[str]:
    """The cells of one line of a table."""
    (found,) = [line.split() for line in text.splitlines() if line.split()[:1] == [name]]
    return found


@pytest.mark.slow
def test_the_paper_s_run_without_network(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("DELTALEARN_DATA_DIR", raising=False)
    rates = Rates(tokens_per_second=20_000, tflops=300, devices=8)
    text = estimate_run(load_recipe("tulu3-8b", ()), RunOptions(tmp_path / "no"), rates)
    missing = section(text, "missing here")
    for needed in ("Qwen/Qwen2.5-3B-Instruct", "package vllm", "OPENAI_API_KEY", "11 benchmarks"):
        assert needed in missing
    assert "150,000 requests, 0 answered already" in section(text, "generate")
    tune = section(text, "tune")
    # PAPER: 150,000 pairs make 4,687 steps of 32; Tülu 3's batch of 128 makes 1,171.
    assert row(tune, "delta")[1:4] == ["dpo_norm", "150,000", "4,687"]
    assert row(tune, "tulu3_preference")[3] == "1,171"
    assert "qwen3b over qwen1.5b: at most 150,000" in section(text, "pairs")
    evaluate = section(text, "evaluate")
    assert "7 models" in evaluate
    assert row(evaluate, "humaneval")[1:3] == ["164", "3,280"]
    assert row(evaluate, "gsm8k")[1:4] == ["1,319", "1,319", f"{1319 * 512 * 7:,}"]
    hours = section(text, "time")
    tokens = float(re.search(r"answer tokens: about ([\d,]+)", text)[1].replace(",", ""))
    assert f"{tokens / 20_000 / 3600:.1f} h" in hours
    assert "?" not in hours
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_foretold_is_what_happens(tmp_path):
    """Requests, pairs at most, steps and scored models; then measured speeds, and work done."""
    recipe, out = small(tmp_path), tmp_path / "run"
    before = deltalearn("run", recipe, "--out", out, "--dry-run")
    assert before.returncode == 0, before.stderr
    assert not out.exists(), "a dry run writes nothing"
    assert "unknown: give --tflops" in before.stdout
    assert deltalearn("run", recipe, "--out", out).returncode == 0
    stages = json.loads((out / "run.json").read_text())["stages"]
    generate, tune = section(before.stdout, "generate"), section(before.stdout, "tune")
    requests = stages["generate/s"]["counts"]["requests"]
    assert f"s: {requests} requests, 0 answered already, {requests} to ask" in generate
    assert row(tune, "delta")[3] == str(stages["tune/delta/seed-0"]["counts"]["steps"])
    scored = sum(name.startswith("evaluate/") for name in stages)
    assert f"evaluate   {scored} models" in before.stdout
    after = deltalearn("run", recipe, "--out", out, "--dry-run").stdout
    assert f"s: {requests} requests, {requests} answered already, 0 to ask" in after
    assert "1 of 1 seeds done" in after
    assert "unknown" not in section(after, "time")


def test_what_is_missing_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    recipe = small(
        tmp_path,
        models={
            "s": {
                "path": "big",
                "server": {"url": "http://127.0.0.1:9/v1", "key_env": "NO_SUCH_KEY"},
            },
            "xs": {"path": str(tmp_path / "absent")},
        },
        generate={"engine": "vllm", "vllm": {"python": str(tmp_path / "python")}},
    )
    found = what_is_missing(load_recipe(recipe, ()).recipe)
    assert [line.partition(":")[0] for line in found] == [
        "model xs",
        f"package vllm, in {tmp_path / 'python'}",
        "key of s",
    ]
    assert all(re.search("check|pip install|is not set", line) for line in found)
    assert what_is_missing(load_recipe("lab", ()).recipe) == []


def test_a_tuning_that_has_begun_tells_its_speed(tmp_path):
    recipe, out = load_recipe(small(tmp_path), ()), tmp_path / "run"
    assert "unknown: give --tflops" in estimate_run(recipe, RunOptions(out), Rates())
    (out / "arms" / "delta" / "seed-0").mkdir(parents=True)
    lines = [json.dumps({"step": 1 + i, "seconds": 60.0 + 3600 * i}) for i in range(3)]
    (out / "arms" / "delta" / "seed-0" / "log.jsonl").write_text("\n".join(lines))
    text = estimate_run(recipe, RunOptions(out), Rates())
    steps = int(row(section(text, "tune"), "delta")[3])
    (line,) = [x for x in section(text, "time").splitlines() if "tune/delta" in x]
    assert f"TFLOP/s, measured in {out}" in line
    # An hour a step, and a forward of all pairs for the reference.
    assert steps <= float(re.search(r"([\d.,]+) h", line)[1]) < 2 * steps


@pytest.mark.parametrize(
    ("setting", "package", "extra"),
    [("float8=true", "torchao", "float8"), ("kernels=liger", "liger_kernel", "kernels")],
)
def test_what_runs_on_gpus_alone_is_said_before_the_start(monkeypatch, setting, package, extra):
    recipe = load_recipe("lab", (f"tune.{setting}", "device=auto")).recipe
    monkeypatch.setattr(missing, "find_spec", lambda name: None)
    monkeypatch.setattr(missing, "_has_gpu", lambda: False)
    name = setting.partition("=")[0]
    assert what_is_missing(recipe)[-2:] == [
        f"package {package}, for tune.{name}: pip install -e '.[{extra}]'",
        f"a GPU, for tune.{name}; leave it out",
    ]
    monkeypatch.setattr(missing, "find_spec", lambda name: name)
    monkeypatch.setattr(missing, "_has_gpu", lambda: True)
    assert what_is_missing(recipe) == []


def test_data_of_benchmarks_is_looked_for(tmp_path):
    recipe = small(
        tmp_path,
        evaluate={"benchmarks": ["gsm8k", "drop"], "data_dir": str(tmp_path)},
    )
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("{}\n")
    found = what_is_missing(load_recipe(recipe, ()).recipe)
    assert found == [f"data of DROP: no drop*/drop*.json in {tmp_path}"]


def test_speeds_belong_to_dry_runs(tmp_path: Path):
    recipe = small(tmp_path)
    fails(deltalearn("run", recipe, "--tflops", "3"), "--tflops has no effect without --dry-run")
    for option in (["--update"], ["--parallel", "2"]):
        fails(deltalearn("run", recipe, "--dry-run", *option), f"{option[0]} has no effect")
    with pytest.raises(UserError, match="--tokens-per-second 0"):
        Rates(tokens_per_second=0)
