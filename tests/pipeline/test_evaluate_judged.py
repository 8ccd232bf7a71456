"""Protects what becomes of AlpacaEval's judging in a run: no fault of a connection is a verdict.

A judge that cannot be reached costs a note and not the run, is asked once it answers, and what it
has judged stays until another judge, other verdicts or other data are given.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial

import pytest
from helpers.fault_server import FaultServer, Reply, answer_to, well

pytest.importorskip("lm_eval")

from helpers.served_suite import Suite, verdicts, when

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca import length_data as sides
from deltalearn.judge.judge import load_judge
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.pipeline import judge as judging
from deltalearn.recipe.evaluation import JudgeSpec
from deltalearn.util.signals import Stopped


@pytest.fixture
def suite(tmp_path, monkeypatch) -> Suite:
    monkeypatch.setattr(judging, "Endpoint", partial(Endpoint, tries=1, wait=0.01, patience=0.5))
    return Suite(tmp_path)


@pytest.fixture
def model():
    with FaultServer(well) as server:
        yield server


def test_a_judge_that_is_down_is_noted_and_asked_when_it_answers(suite, model):
    found, said = suite.run(model, judge=suite.judge(None))
    entry = found["benchmarks"]["alpaca_eval"]
    assert entry["score"] is None
    (note,) = (n for n in entry["notes"] if n.startswith("not judged: "))
    assert "127.0.0.1:9/v1 (judge-1): the server has not answered" in note
    assert note in said, "the fault is shown"
    assert found["benchmarks"]["ifeval"]["score"] is not None, "the others are run"
    with FaultServer(verdicts) as judge:
        found, _ = suite.run(model, judge=suite.judge(judge))
        assert judge.asked.total() == 12, "no fault was kept as a verdict"
    assert found["benchmarks"]["alpaca_eval"]["score"] is not None
    assert model.asked.total() == 24, "the model was asked once"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "429", "reset", "no choices", "html"])
def test_no_win_rate_of_those_that_happened_to_be_in_time(suite, model, fault):
    """One fault in twelve; the other verdicts are kept, and only that one is asked again."""
    down = True

    def plan(question, attempt):
        return fault if down and "alpaca 3\n" in question else verdicts(question, attempt)

    with FaultServer(plan) as judge:
        found, _ = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
        assert found["benchmarks"]["alpaca_eval"]["score"] is None
        assert "1 of 12 comparisons" in found["benchmarks"]["alpaca_eval"]["notes"][-1]
        down, before = False, judge.asked.total()
        found, _ = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
        assert found["benchmarks"]["alpaca_eval"]["score"] is not None
        assert judge.asked.total() == before + 1
        assert found["benchmarks"]["alpaca_eval"]["n"] == 12


def test_a_prompt_that_the_judge_declines_is_nobody_s(suite, model):
    def plan(question, attempt):
        return "400" if "alpaca 3\n" in question else verdicts(question, attempt)

    with FaultServer(plan) as judge:
        found, _ = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    entry = found["benchmarks"]["alpaca_eval"]
    assert (entry["n"], entry["alpaca_eval"]["comparisons"]["faults"]) == (11, {"error": 1})


def test_a_judge_that_declines_everything_says_why(suite, model):
    with FaultServer(lambda question, attempt: "400") as judge:
        found, said = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    assert found["benchmarks"]["alpaca_eval"]["score"] is None
    assert "this prompt is not wanted" in said


def test_a_judged_score_stands_without_a_judge(suite, model):
    """Also where the model has left out an answer, which would be asked again with a judge."""
    model.plan = when("alpaca 3", "null")
    with FaultServer(verdicts) as judge:
        suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    first = suite.results["benchmarks"]
    assert first["alpaca_eval"]["score"] is not None
    _, said = suite.run(model, "alpaca_eval")
    assert suite.results["benchmarks"] == first
    assert "(done before)" in said
    _, said = suite.run(model, "alpaca_eval", judge=suite.judge(None, model="judge-2"))
    assert suite.results["benchmarks"] == first, "another judge who cannot be reached"
    assert "done before; now not judged: " in said


def test_another_judge_is_not_done_before(suite, model):
    """Another model, another reading, another prompt in the same file."""

    def plan(question, attempt):
        return Reply(200, answer_to(question, message={"content": "m"}))

    with FaultServer(plan) as judge:
        for wanted in (suite.judge(judge), suite.judge(judge, model="judge-2")):
            suite.run(model, "alpaca_eval", judge=wanted)
        assert judge.asked.total() == 24
        wanted = suite.judge(judge)
        prompt = suite.folder / "own" / "prompt.txt"
        prompt.write_text(prompt.read_text().replace("m: ", "First, m: "))
        _, said = suite.run(model, "alpaca_eval", judge=wanted)
        assert "(done before)" not in said and judge.asked.total() == 36
        _, said = suite.run(model, "alpaca_eval", judge=wanted)
        assert "(done before)" in said
        _, said = suite.run(model, "alpaca_eval", judge=suite.judge(judge, text_only=False))
        assert "(done before)" not in said, "read from log-probabilities, which are not there"


def test_other_verdicts_in_the_same_file_are_read(suite, model):
    with FaultServer(verdicts) as judge:
        suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    rows = json.loads((suite.out / "alpaca_eval" / "annotations.json").read_text())
    file = suite.folder / "given.json"
    for preference in (1.0, 2.0):
        file.write_text(json.dumps([{**row, "preference": preference} for row in rows]))
        found, said = suite.run(model, "alpaca_eval", annotations=file)
        assert "(done before)" not in said
        details = found["benchmarks"]["alpaca_eval"]["alpaca_eval"]
        assert details["win_rate"]["win_rate"] == pytest.approx(preference - 1)


def test_who_cannot_judge_is_known_before_anything_is_asked(suite, model, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for judge, message in (
        ({"annotations": suite.folder / "none.json"}, "none.json"),
        ({"judge": JudgeSpec(evaluator=str(suite.folder / "none"))}, "nor an evaluator"),
        ({"judge": suite.judge(None, key_env="NO_SUCH_KEY")}, "NO_SUCH_KEY is not set"),
    ):
        with pytest.raises(UserError, match=message):
            suite.run(model, **judge)
    assert model.asked.total() == 0
    assert suite.test_set_log == []


def test_local_data_means_no_hub_for_the_length_control(suite, model, monkeypatch):
    """Neither the option nor the variable lets the side files be looked for in the network."""
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(judging, "find_length_data", never)
    with FaultServer(verdicts) as judge:
        found, _ = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    assert found["benchmarks"]["alpaca_eval"]["alpaca_eval"]["sides"] is None
    monkeypatch.setenv("DELTALEARN_DATA_DIR", str(suite.data))
    folder = suite.data / "alpaca_eval"
    lines = [f"{i},0.5,{(-1) ** i * 0.1},0.{i}" for i in range(12)]
    (folder / sides.GAMED_FILE).write_text("\n".join([",".join(sides.COLUMNS), *lines]) + "\n")
    with FaultServer(verdicts) as judge:
        found, said = suite.run(model, "alpaca_eval", judge=suite.judge(judge), data_dir=None)
        assert "(done before)" not in said and judge.asked.total() == 0
    assert set(found["benchmarks"]["alpaca_eval"]["alpaca_eval"]["sides"]) == {sides.GAMED_FILE}
    assert found["data"] == "local"


def test_asked_to_stop_it_keeps_what_the_judge_has_answered(suite, model):
    """Paid for is paid for: what was in flight is finished and kept, the rest is asked later."""

    def plan(question, attempt):
        if judge.asked.total() == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return verdicts(question, attempt)

    with FaultServer(plan) as judge:
        with pytest.raises(Stopped, match=r"judge: stopped, \d+ of 12 comparisons made"):
            suite.run(model, "alpaca_eval", judge=suite.judge(judge))
        assert 5 <= judge.asked.total() < 12
        judge.plan = verdicts
        found, _ = suite.run(model, "alpaca_eval", judge=suite.judge(judge))
    assert found["benchmarks"]["alpaca_eval"]["n"] == 12
    assert set(judge.asked.values()) == {1}


def test_the_key_of_the_judge_is_seen_by_its_server_alone(suite, model, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-judge")
    echo = Reply(401, {"error": {"message": "no such key: sk-secret-judge"}})
    with FaultServer(lambda question, attempt: echo) as judge:
        _, said = suite.run(model, "alpaca_eval", judge=suite.judge(judge, key_env="JUDGE_KEY"))
        assert {h["authorization"] for h in judge.headers} == {"Bearer sk-secret-judge"}
    assert "no such key: [key]" in said
    for file in suite.out.rglob("*"):
        assert not file.is_file() or b"sk-secret-judge" not in file.read_bytes(), file


def test_without_a_server_the_judge_is_openai_s(suite, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-at-openai")
    options = suite.judge(None, url=None)
    judge = load_judge(options.evaluator, options.model, text_only=options.text_only)
    endpoint = judging.judge_endpoint(options, judge)
    assert (endpoint.url, endpoint.model) == ("https://api.openai.com/v1", "judge-1")
    assert endpoint.key() == "sk-mine-at-openai"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        judging.judge_key(options, None)
    other = dataclasses.replace(
        judge, evaluator=dataclasses.replace(judge.evaluator, decoder="anthropic_completions")
    )
    with pytest.raises(UserError, match=r"no model of OpenAI.*--judge-url"):
        judging.judge_endpoint(options, other)
