"""Protects a run in several processes: under a launcher, and independent stages side by side.

Either way it is the run of one process, to rounding under a launcher and to the last bit side by
side; killed or stopped it goes on, and one process alone opens the directory and speaks.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.cli import deltalearn, fails, small
from helpers.launched import ACCELERATE, TORCHRUN, ended, kill_all, start, wait_for
from safetensors.torch import load_file

STEPS = 40


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Two arms and two seeds on one pairing, long enough to be stopped in the middle."""
    sides = {"chosen": "s", "rejected": "xs"}
    return small(
        tmp_path_factory.mktemp("recipe"), seeds=[0, 1],
        tune={"lr": 1e-4, "batch_size": 4, "steps": STEPS, "checkpoint_every": 1},
        arms={"base": {}, "delta": sides, "sft": {**sides, "tune": {"method": "sft"}}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    """The same run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = deltalearn("run", recipe, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


def begun(out: Path) -> Callable[[], bool]:
    """Whether some student was trained for a step."""
    return lambda: any(out.glob("arms/*/*/checkpoints/step-*"))


def students(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = sorted(out.glob("arms/*/*/final/model.safetensors"))
    return {str(path.relative_to(out)): load_file(path) for path in found}


def scores(out: Path) -> dict[str, dict[str, float]]:
    """What the trained students scored on average; a greedy answer may tip over by rounding."""
    found = {}
    for file in sorted(out.glob("scores/arms/*/*/results.json")):
        entries = json.loads(file.read_text())["benchmarks"].items()
        given = {name: entry["score"] for name, entry in entries if "greedy" not in name}
        found[str(file.relative_to(out))] = given
    return found


def assert_same(out: Path, alone: Path, **tolerance: float) -> None:
    ours, theirs = students(out), students(alone)
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for student, weights in theirs.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(ours[student][name], tensor, **tolerance, msg=student)


EXACT = {"atol": 0.0, "rtol": 0.0}
ROUNDED = {"atol": 2e-4, "rtol": 1e-3}  # Adam divides by tiny moments, so rounding shows


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_under_a_launcher_it_is_the_run_of_one_process(recipe, alone, tmp_path, launcher):
    """Killed as a whole, and run again: one process speaks, and nothing is answered twice."""
    out = tmp_path / "run"
    first = start(launcher, recipe, "--out", out)
    wait_for(begun(out), first)
    kill_all(first)
    code, said, errors = ended(start(launcher, recipe, "--out", out))
    assert code == 0, errors
    assert_same(out, alone, **ROUNDED)
    assert said.count("tune/sft/seed-1 ") == said.count("evaluate/models/s ") == 1
    assert "generate/" not in said
    stages = json.loads((out / "run.json").read_text())["stages"]
    resumed = [r["counts"]["resumed_at"] for n, r in stages.items() if n.startswith("tune/")]
    assert max(resumed) > 0
    ours, theirs = scores(out), scores(alone)
    assert len(theirs) == 4 and ours == {
        name: pytest.approx(s, abs=5e-3) for name, s in theirs.items()
    }
    code, said, _ = ended(start(launcher, recipe, "--out", out))
    assert code == 0 and said.count("nothing to do") == 1


def rows(out: Path) -> int:
    """How many answers there are, of a store that may be about to be made."""
    try:
        return len(answers(out))
    except sqlite3.OperationalError:
        return 0


def answers(out: Path) -> set[tuple]:
    with closing(sqlite3.connect(out / "responses.sqlite")) as db:
        return set(db.execute("SELECT key, text, token_ids, finish_reason FROM responses"))


@pytest.mark.slow
def test_models_that_answer_at_a_time_give_the_answers_of_one_process(tmp_path):
    """Killed, stopped and run again: each request is answered once, in the batch it had."""
    recipe = small(
        tmp_path, generate={"temperature": 1.0, "max_tokens": 16, "samples": 8, "token_budget": 64},
        models={
            name: {"path": f"package://deltalearn.lab/ladder/{size}"}
            for name, size in (("s", "s"), ("xs", "xs"), ("again", "s"))
        },
        arms={"base": {}, "delta": {"chosen": "s", "rejected": "xs"},
              "repeated": {"chosen": "again", "rejected": "xs"}},
    )  # fmt: skip
    alone, out = tmp_path / "alone", tmp_path / "run"
    command = [recipe, "--until", "generate", "--out"]
    assert deltalearn("run", *command, alone).returncode == 0
    side_by_side = [*command, out, "--parallel", "3"]
    killed = start([], *side_by_side)
    wait_for(lambda: rows(out), killed)
    kill_all(killed)
    before = len(answers(out))
    stopped = start([], *side_by_side)
    wait_for(lambda: len(answers(out)) > before, stopped)
    stopped.send_signal(signal.SIGINT)
    code, _, errors = ended(stopped)
    assert code == 130 and "generate: stopped" in errors and "Traceback" not in errors
    assert before < len(answers(out)) < 240
    code, said, errors = ended(start(TORCHRUN, *command, out))
    assert code == 0, errors
    assert "generate/again " in said and "cached 120" in said
    assert answers(out) == answers(alone) and len(answers(out)) == 240
    code, said, _ = ended(start([], *side_by_side))
    assert code == 0 and "nothing to do" in said


@pytest.mark.slow
def test_under_a_launcher_a_mistake_is_told_once(recipe, tmp_path):
    out = tmp_path / "run"
    code, _, errors = ended(start(TORCHRUN, recipe, "--out", out, "--set", "tune.batch_size=1"))
    assert code != 0
    assert errors.count("error: ") == 1
    assert "batch_size 1 is less than one pair for each of 2 processes" in errors
    code, _, errors = ended(start(TORCHRUN, recipe, "--out", out, "--set", "prompts.source=./no"))
    assert code != 0 and errors.count("error: ") == 1
    code, _, errors = ended(start(TORCHRUN, recipe, "--out", out, "--parallel", "2"))
    assert code != 0 and errors.count("--parallel has no effect under a launcher") == 1


@pytest.mark.slow
def test_side_by_side_it_is_the_run_of_one_process(recipe, alone, tmp_path):
    """Stopped by Ctrl-C, it says so once and goes on; killed, it leaves nobody at work."""
    out = tmp_path / "run"
    command = [recipe, "--out", out, "--parallel", "2"]
    stopped = start([], *command)
    wait_for(begun(out), stopped)
    stopped.send_signal(signal.SIGINT)
    code, said, errors = ended(stopped)
    assert code == 130, errors
    assert "Traceback" not in errors
    assert re.search(r"tune: stopped; 2 not begun; run the same command again to resume", errors)
    assert begun(out)()
    killed = start([], *command)
    wait_for(lambda: len(list(out.glob("arms/*/*/log.jsonl"))) >= 2, killed)
    killed.kill()
    killed.wait()
    code, said, errors = ended(start([], *command))
    assert code == 0, errors
    assert "tune/sft/seed-1 " in said
    assert_same(out, alone, **EXACT)
    code, said, _ = ended(start([], *command))
    assert code == 0 and "nothing to do" in said


@pytest.mark.slow
def test_side_by_side_a_failure_is_told_and_what_is_at_work_is_finished(recipe, alone, tmp_path):
    out = tmp_path / "run"
    command = ["run", recipe, "--out", out]
    broken = "arms.sft.tune={method: sft, max_length: 3}"  # no prompt is as short
    result = deltalearn(*command, "--set", broken, "--parallel", "4")
    fails(result, "tune sft (seed ", "none of 15 pairs can be trained on")
    stages = json.loads((out / "run.json").read_text())["stages"]
    tuned = {name: record["state"] for name, record in stages.items() if name.startswith("tune")}
    assert tuned == {"tune/delta/seed-0": "done", "tune/delta/seed-1": "done"}
    result = deltalearn(*command, "--update", "--parallel", "2")
    assert result.returncode == 0, result.stderr
    assert "tune/delta" not in result.stdout
    assert_same(out, alone, **EXACT)
