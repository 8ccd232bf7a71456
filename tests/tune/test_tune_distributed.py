"""Protects tuning in several processes: DDP and FSDP2 on gloo give the weights of one process.

The number of processes changes rounding only; a killed run goes on, also with another number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORDS = ["abcd", "bcda", "cdab", "dabc", "acbd", "bdca", "cadb", "dbac"]
WORKER = Path(__file__).parents[1] / "helpers" / "tune_worker.py"
# Three micro-batches a step for one process, so that ranks hold different numbers of pairs.
SETTINGS = {
    "lr": 1e-3,
    "batch_size": 5,
    "steps": 6,
    "checkpoint_every": 2,
    "token_budget": 40,
    "eval_pairs": 1,
    "eval_every": 3,
}
pytestmark = pytest.mark.slow


def launch(
    out: Path, processes: int, kill_at: int | None = None, dtype: str = "float32", **changes
) -> subprocess.CompletedProcess:
    job = {"out": str(out), "settings": {**SETTINGS, **changes}, "seed": 3, "kill_at": kill_at}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    out.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [*command, str(WORKER), json.dumps({**job, "dtype": dtype})],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def tune_command(out: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """The command itself, for what needs a recipe."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "deltalearn", "tune"]
    return subprocess.run(
        [*command, "--device", "cpu", "--out", str(out), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def lines(out: Path, name: str = "log.jsonl") -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    done = launch(out, 1)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_run(out: Path, alone: Path) -> None:
    for ours, theirs in zip(lines(out), lines(alone), strict=True):
        for key in theirs.keys() - {"seconds", "tokens"}:
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=1e-5), key
    for ours, theirs in zip(lines(out, "evals.jsonl"), lines(alone, "evals.jsonl"), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    assert_same_weights(out, alone)


def assert_same_weights(out: Path, alone: Path) -> None:
    expected = weights(alone)
    found = weights(out)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Adam divides by tiny moments, so rounding shows; a step moves weights by up to 1e-3.
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_give_the_weights_of_one(alone, tmp_path, shard):
    done = launch(tmp_path, 2, shard=shard)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, alone)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["scored"] == 22, "each answer once, over both processes"
    assert sorted(p.name for p in (tmp_path / "final").iterdir()) == sorted(
        p.name for p in (alone / "final").iterdir()
    )


@pytest.mark.parametrize(("shard", "after"), [(False, 2), (True, 2), (True, 1), (False, 3)])
def test_killed_and_resumed(alone, tmp_path, shard, after):
    """Killed in two processes, resumed in as many, in one or in three."""
    killed = launch(tmp_path, 2, kill_at=3, shard=shard)
    assert killed.returncode != 0
    assert not (tmp_path / "final").exists()
    done = launch(tmp_path, after, shard=shard and after > 1)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"scored": 0, "resumed_at": 2}
    assert_same_run(tmp_path, alone)


def test_sharded_run_keeps_the_best_which_is_not_the_last(tmp_path):
    """Evaluation is a forward without a backward, after which sharded weights are put back."""
    early = {"lr": 3e-3, "eval_pairs": 3, "eval_every": 1, "patience": 1, "steps": 12}
    one, two, last = (tmp_path / name for name in ("one", "two", "last"))
    for out, processes, keep_best in ((one, 1, True), (two, 2, True), (last, 1, False)):
        done = launch(out, processes, shard=processes > 1, keep_best=keep_best, **early)
        assert done.returncode == 0, done.stderr
    losses = [line["eval_loss"] for line in lines(one, "evals.jsonl")]
    assert losses.index(min(losses)) == len(losses) - 2, "the last but one is the best"
    assert_same_run(two, one)
    best, stopped = weights(two), weights(last)
    assert max((best[name] - stopped[name]).abs().max() for name in best) > 1e-3


def test_sharded_run_goes_on_without_its_reference(tmp_path, alone):
    """The references are scored again, by forwards alone, before the checkpoint is loaded."""
    assert launch(tmp_path, 2, kill_at=3, shard=True).returncode != 0
    (tmp_path / "reference.sqlite").unlink()
    done = launch(tmp_path, 2, shard=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text()) == {"scored": 22, "resumed_at": 2}
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("metric", ["loglik", "greedy_accuracy"])
def test_dev_scores_of_sharded_adapters(tmp_path, lab_ladder, write_lines, metric):
    """Weights outside the layers are gathered by peft's wrapper, which the suite does not call."""
    pairs = [{"prompt": f"rev {w}", "chosen": w[::-1], "rejected": w[:0:-1]} for w in WORDS]
    arguments = [
        "--student",
        "package://deltalearn.lab/ladder/m",
        "--pairs",
        str(write_lines(pairs)),
    ]
    arguments += ["--lora", "4", "--lr", "1e-2", "--steps", "2", "--batch-size", "4"]
    dev = {"source": lab_ladder / "eval.jsonl", "metric": metric, "limit": 20, "max_tokens": 8}
    for key, value in {**{f"dev.{k}": v for k, v in dev.items()}, "eval_every": 1}.items():
        arguments += ["--set", f"{key}={value}"]
    for name, processes in (("one", 1), ("two", 2)):
        sharded = ["--shard"] * (processes > 1)
        done = tune_command(tmp_path / name, processes, *arguments, *sharded)
        assert done.returncode == 0, done.stderr
    one, two = (lines(tmp_path / name, "evals.jsonl") for name in ("one", "two"))
    assert [e["step"] for e in two] == [1, 2]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    if metric == "loglik":
        assert one[0][f"dev_{metric}"] != pytest.approx(one[1][f"dev_{metric}"], rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [({"lora": {"r": 4}}, "float32"), ({"lora": {"r": 4}}, "bfloat16"), ({}, "bfloat16")],
    ids=["lora", "lora, bfloat16", "bfloat16"],
)
def test_sharded_with_adapters_and_in_low_precision(tmp_path, changes, dtype):
    """The same losses as in one process; low precision rounds where it is gathered."""
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(tmp_path / name, processes, dtype=dtype, shard=processes > 1, **changes)
        assert done.returncode == 0, done.stderr
    close = 2e-3 if dtype == "float32" else 0.1
    one, two = (lines(tmp_path / name) for name in ("one", "two"))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], abs=close)
    assert (tmp_path / "two" / "adapter").exists() == bool(changes)


def test_resume_in_as_many_processes_is_exact(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(whole, 2, shard=True).returncode == 0
    assert launch(cut, 2, kill_at=3, shard=True).returncode != 0
    assert launch(cut, 2, shard=True).returncode == 0
    expected = weights(whole)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(cut).items())


def test_more_processes_than_pairs_are_refused(tmp_path):
    done = launch(tmp_path, 2, batch_size=1)
    assert done.returncode != 0
    assert "batch_size 1 is less than one pair for each of 2 processes" in done.stderr


def test_sharding_one_process_is_refused(tmp_path):
    done = launch(tmp_path, 1, shard=True)
    assert done.returncode != 0
    assert "torchrun --nproc-per-node" in done.stderr
