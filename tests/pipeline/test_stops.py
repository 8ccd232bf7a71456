"""Protects stops: Ctrl-C and SIGTERM are honoured between any two pieces of work, and never lost.

What is in flight is finished and kept; nothing that was not begun is asked, paid for or trained.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from helpers.cli import small
from helpers.fault_server import FaultServer, Reply, answer_to, well
from helpers.generation import prompts_file

from deltalearn.pipeline.generate import run_generate
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.recipe import GENERATE, load_recipe
from deltalearn.util.signals import ACKNOWLEDGED, SafeStop, Stopped, leave_if_asked

PROMPTS = 4


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stages(out: Path) -> list[str]:
    found = json.loads((out / "run.json").read_text())["stages"]
    return [name for name, record in found.items() if record["state"] == "done"]


def test_a_request_stands_until_somebody_acts_on_it(capfd):
    with SafeStop() as first:
        stop()
        assert first.asked
    assert ACKNOWLEDGED in capfd.readouterr().err
    with SafeStop() as second:
        assert second.asked, "the block before ended without having acted on it"
    with pytest.raises(Stopped, match="all of it"):
        leave_if_asked("all of it")
    leave_if_asked("nothing is asked any more")
    with SafeStop() as third:
        assert not third.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_leaves_at_once_and_nothing_is_left_of_either(number):
    with pytest.raises(Stopped) as raised, SafeStop():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert raised.value.number == number
    leave_if_asked("nothing is asked any more")


def test_in_the_last_batch_of_a_model_no_other_is_asked(tmp_path):
    """All requests to the first model are in flight at once when the stop comes."""

    def plan(question: str, attempt: int) -> Reply:
        if question == f"q{PROMPTS - 1}" and server.bodies[-1]["model"] == "a":
            stop()
        return Reply(200, answer_to(question), delay=0.1)

    options = {"prompts.source": str(prompts_file(tmp_path, PROMPTS))}
    with FaultServer(plan) as server:
        server.models = Reply(404, {})
        models = {f"models.{n}": {"path": n, "server": {"url": server.url}} for n in "ab"}
        loaded = load_recipe(None, command=GENERATE, options=options | models)
        with pytest.raises(Stopped, match="generate/a is done; stopped"):
            run_generate(loaded, tmp_path / "out", say=lambda line: None)
        assert [body["model"] for body in server.bodies] == ["a"] * PROMPTS
        assert stages(tmp_path / "out") == ["prompts", "generate/a"]
        server.plan = well
        assert run_generate(loaded, tmp_path / "out", say=lambda line: None) == 0
        assert [body["model"] for body in server.bodies[PROMPTS:]] == ["b"] * PROMPTS


def test_in_the_only_batch_of_a_model_that_is_here(tmp_path, monkeypatch):
    from deltalearn.generate.engines.hf import TransformersEngine

    answer = TransformersEngine.answer

    def stopped_meanwhile(self, batch):
        stop()
        return answer(self, batch)

    monkeypatch.setattr(TransformersEngine, "answer", stopped_meanwhile)
    out = tmp_path / "out"
    with pytest.raises(Stopped, match="generate/s is done; stopped"):
        run_recipe(load_recipe(small(tmp_path)), RunOptions(out), say=lambda line: None)
    assert stages(out) == ["prompts", "overlap", "generate/s"]


def test_in_the_last_step_of_a_seed_the_next_is_not_begun_and_nothing_is_scored(
    tmp_path, monkeypatch
):
    from deltalearn.tune.loop import Run

    step = Run.step

    def stopped_meanwhile(self, number, asked):
        found = step(self, number, asked)
        if number == 1:
            stop()
        return found

    monkeypatch.setattr(Run, "step", stopped_meanwhile)
    out = tmp_path / "out"
    loaded = load_recipe(small(tmp_path, seeds=[0, 1]))
    with pytest.raises(Stopped, match="tune/delta/seed-0 is done; stopped"):
        run_recipe(loaded, RunOptions(out), say=lambda line: None)
    assert stages(out)[-1] == "tune/delta/seed-0"
    assert not (out / "arms/delta/seed-1").exists() and not (out / "scores").exists()
    monkeypatch.undo()
    run_recipe(loaded, RunOptions(out, until="tune"), say=lambda line: None)
    assert stages(out)[-2:] == ["tune/delta/seed-0", "tune/delta/seed-1"]
