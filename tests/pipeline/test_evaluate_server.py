"""Protects an evaluation at a server: paid answers are kept, its faults are neither answers nor
tracebacks, and the log has exactly those models that were asked.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from functools import partial

import pyarrow.parquet as pq
import pytest
from helpers.fault_server import FaultServer, Reply, answer_to, well

pytest.importorskip("lm_eval")

from helpers.served_suite import Suite, when

from deltalearn.errors import UserError
from deltalearn.evaluate.harness import served
from deltalearn.evaluate.harness.backends import BackendOptions, load
from deltalearn.evaluate.harness.cache import FILE
from deltalearn.evaluate.harness.model import CachedLM
from deltalearn.evaluate.harness.served import Unreachable
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.pipeline.evaluate import evaluate
from deltalearn.pipeline.evaluate_options import Options
from deltalearn.recipe.evaluation import EvaluateSpec


@pytest.fixture
def suite(tmp_path, monkeypatch) -> Suite:
    monkeypatch.setattr(served, "Endpoint", partial(Endpoint, wait=0.01, patience=0.5))
    return Suite(tmp_path)


def answers(suite: Suite) -> int:
    path = suite.out / FILE
    if not path.is_file():
        return 0
    try:
        return sqlite3.connect(path).execute("SELECT count(*) FROM entries").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


# -- what is kept ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_loses_no_answer_that_has_come(suite):
    """Every answer but those of the last questions, which do not come: with two in flight."""

    def plan(question, attempt):
        slow = question in ("ifeval 10", "ifeval 11") and attempt == 1
        return Reply(200, answer_to(question), delay=60.0 if slow else 0.0)

    with FaultServer(plan) as server:
        command = [
            sys.executable, "-m", "deltalearn", "evaluate", "m", "--url", server.url, "--out",
            str(suite.out), "--data-dir", str(suite.data), "--benchmark", "ifeval",
            "--concurrency", "3",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while answers(suite) < 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert answers(suite) == 10
        assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
        assert server.asked.total() == 14
    assert suite.results["benchmarks"]["ifeval"]["n"] == 12


def test_samples_are_asked_beside_each_other(tmp_path):
    """Their seeds differ, and lm_eval asks only those of equal settings at a time."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    from deltalearn.evaluate.harness.cache import Answers

    plan = lambda question, attempt: Reply(200, answer_to(question), delay=0.1)  # noqa: E731
    with FaultServer(plan) as server:
        inner = LocalChatCompletion(
            base_url=f"{server.url}/chat/completions", model="m", num_concurrent=4
        )
        prompt = inner.apply_chat_template([{"role": "user", "content": "one"}])
        options = {"until": ["never"], "max_gen_toks": 5, "do_sample": True}
        model = CachedLM(
            inner, "m", Answers(tmp_path / "answers.sqlite"), server=served.Server(inner)
        )
        found = model.generate_until([Instance("generate_until", {}, (prompt, options), 0)] * 8)
        assert found == ["answer to one"] * 8
        assert server.most_in_flight == 4
        assert len({body["seed"] for body in server.bodies}) == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
@pytest.mark.parametrize("arguments", [{}, {"tokenized_requests": False}], ids=["ids", "text"])
def test_completions_are_asked_and_read_as_by_lm_eval(tiny_model, kind, arguments):
    """The same body goes out, the same value comes back."""
    from helpers.completions import completions
    from lm_eval.api.instance import Instance

    rest = {"until": ["dog"], "max_gen_toks": 7, "temperature": 0.5}
    request = ("the quick " * 40, rest if kind == "generate_until" else " dog")
    with completions() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        inner = load(
            BackendOptions(
                kind="openai",
                model="m",
                url=url,
                tokenizer=str(tiny_model),
                context=64,
                options=arguments,
            )
        )
        theirs = getattr(inner, kind)([Instance(kind, {}, request, 0)], disable_tqdm=True)
        ours: list = []
        served.Server(inner).ask(kind, [request], lambda at, v: ours.append(v), lambda: False)
        assert ours == theirs
        first, second = server.bodies
        assert first == second


# -- what is graded -------------------------------------------------------------------------------

SAID = {  # ways in which servers give reasoning and answer
    "apart": {"reasoning_content": "well, well", "content": "fine"},
    "renamed": {"reasoning": "well, well", "content": "fine"},
    "in parts": {"content": [{"type": "thinking", "thinking": "well, well"},
                             {"type": "text", "text": "fine"}]},
    "with marks": {"content": "<think>well, well</think>fine"},
    "with other marks": {"content": "[THINK]well, well[/THINK]fine"},
    "in channels": {"content": "<|channel|>analysis<|message|>well, well<|end|><|start|>assistant"
                               "<|channel|>final<|message|>fine<|return|>"},
}  # fmt: skip
NOT_SAID = {
    "unfinished": {"content": "<think>well, well"},
    "apart alone": {"reasoning_content": "well, well", "content": None},
    "run together": {"content": "analysiswell, wellassistantfinalfine"},
}
WAYS = list({**SAID, **NOT_SAID}.items())


def test_the_answer_is_graded_and_judged_whatever_way_a_server_gives_it(suite):
    """The questions ask for no comma, of which the reasoning has one."""

    def plan(question, attempt):
        message = WAYS[int(question.split()[1]) % len(WAYS)][1]
        return Reply(200, answer_to(question, message=message))

    with FaultServer(plan) as server:
        found, said = suite.run(server)
        assert not any("stop" in body for body in server.bodies), "they would end the reasoning"
    for name, note in (("unfinished", "2 replies reasoned"), ("run together", "1 replies have")):
        assert any(line.startswith(note) for line in found["benchmarks"]["ifeval"]["notes"]), name
    assert "2 replies reasoned" in said
    rows = pq.read_table(suite.out / "items" / "ifeval.parquet").to_pylist()
    for row in rows:
        way, _ = WAYS[int(row["id"]) % len(WAYS)]
        assert row["output"] == ("fine" if way in SAID else ""), way
        assert row["score"] == float(way in SAID), way
        assert "well, well" in row["reasoning"], way
    outputs = json.loads((suite.out / "alpaca_eval" / "model_outputs.json").read_text())
    assert {row["output"] for row in outputs} == {"fine", ""}


# -- faults ---------------------------------------------------------------------------------------


def test_no_text_is_no_answer_for_good(suite):
    with FaultServer(when("ifeval 3", "null")) as server:
        found, said = suite.run(server, "ifeval")
        note = "the server gave no text for 1 requests"
        assert note in found["benchmarks"]["ifeval"]["notes"][0] and note in said
        assert answers(suite) == 11
        server.plan = well
        found, said = suite.run(server, "ifeval")
        assert server.asked.total() == 13, "that one is asked again"
        assert "no text" not in said and answers(suite) == 12
        assert "(done before)" in suite.run(server, "ifeval")[1]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("400", "HTTP 400: this prompt is not wanted"),
        ("no choices", "HTTP 200, but no completion"),
        ("html", "<html>welcome</html>"),
        ("500", "HTTP 500: oops"),
        ("reset", "ServerDisconnected"),
    ],
)
def test_a_prompt_that_is_refused_costs_its_benchmark_alone(suite, fault, told):
    """Also when nothing else of the benchmark is left to ask: a harmless question tells."""
    with FaultServer(when("alpaca 3", fault)) as server:
        for asked in (24, 26):  # of the second run: what was refused, and something harmless
            found, said = suite.run(server)
            reason = found["not_run"]["alpaca_eval"]
            assert server.url in reason and told in reason and reason in said
            assert set(found["benchmarks"]) == {"ifeval"}
            if asked == 24:
                kept = answers(suite)
                assert kept >= 12
        assert answers(suite) <= 23


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["400", "html", "no choices", Reply(401, {"error": "who?"})])
def test_a_server_that_refuses_everybody_ends_the_run(suite, fault):
    with FaultServer(lambda question, attempt: fault) as server:
        with pytest.raises(Unreachable, match=server.url):
            suite.run(server)
        assert not any(question.startswith("ifeval") for question in server.asked)
    assert list(suite.results["not_run"]) == ["alpaca_eval"]
    with pytest.raises(Unreachable, match="ClientConnectorError"):
        suite.run(None)


def test_the_key_is_hidden_in_what_the_server_says(suite, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-model")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    echo = Reply(401, {"error": {"message": "no such key: sk-secret-model"}})
    with FaultServer(lambda question, attempt: echo) as server:
        backend = BackendOptions(kind="openai", model="m", url=server.url, key_env="MY_KEY")
        with pytest.raises(Unreachable, match=r"HTTP 401: no such key: \[key\]"):
            suite.run(server, backend=backend)
    for file in suite.out.rglob("*"):
        assert not file.is_file() or b"sk-secret-model" not in file.read_bytes(), file


def test_a_server_in_trouble_is_asked_again(suite):
    def plan(question, attempt):
        return "500" if attempt == 1 and question == "ifeval 3" else well(question, attempt)

    with FaultServer(plan) as server:
        arguments = {"max_retries": 2}
        backend = BackendOptions(kind="openai", model="m", url=server.url, options=arguments)
        found, _ = suite.run(server, "ifeval", backend=backend)
        assert found["not_run"] == {} and server.asked["ifeval 3"] == 2


# -- other data, and who has seen it --------------------------------------------------------------


def test_other_data_of_the_same_size_is_not_done_before(suite):
    path = suite.data / "ifeval" / "input.jsonl"
    with FaultServer(well) as server:
        suite.run(server, "ifeval")
        assert "(done before)" in suite.run(server, "ifeval")[1]
        path.write_text(path.read_text().replace("ifeval 3", "another 3"))
        _, said = suite.run(server, "ifeval")
        assert "(done before)" not in said and server.asked["another 3"] == 1
        other = path.read_text().replace("punctuation:no_comma", "startend:quotation", 1)
        path.write_text(other)
        _, said = suite.run(server, "ifeval")
        assert "(done before)" not in said, "another gold"
        assert server.asked.total() == 13


def test_the_variable_is_the_option(suite, monkeypatch):
    monkeypatch.setenv("DELTALEARN_DATA_DIR", str(suite.data))
    with FaultServer(well) as server:
        found, _ = suite.run(server, "ifeval", data_dir=None)
        assert found["data"] == "local"
        assert "(done before)" in suite.run(server, "ifeval")[1]


def test_the_log_has_what_was_asked_when_a_later_benchmark_fails(suite):
    plan = when("ifeval 0", Reply(401, {"error": "no more"}))
    with FaultServer(plan) as server, pytest.raises(UserError):
        suite.run(server)
    assert [line["benchmark"] for line in suite.test_set_log] == ["alpaca_eval", "ifeval"]
    (first, second) = suite.test_set_log
    assert (first["items"], first["split"], first["limit"]) == (12, "test", None)
    assert first["docs"] != second["docs"]
    assert suite.results["test_models"] == 1


def test_a_model_that_was_never_asked_is_not_in_the_log(suite):
    for url, message in ((None, "needs --url"), ("localhost:8000", "looks like http")):
        with pytest.raises(UserError, match=message):
            suite.run(None, backend=BackendOptions(kind="openai", model="m", url=url))
    with FaultServer(well) as server:
        suite.run(server, "humaneval", "gsm8k")
        assert suite.test_set_log == []
        suite.run(server, "ifeval")
        (suite.out.parent / "evaluations.jsonl").unlink()
        (suite.out / "results.json").unlink()
        suite.run(server, "ifeval")
        assert suite.test_set_log == [], "graded again, and nothing was asked"


def test_models_are_counted_that_saw_these_items(suite):
    with FaultServer(well) as server:
        for model, benchmark in (("a", "ifeval"), ("b", "alpaca_eval"), ("c", "ifeval")):
            backend = BackendOptions(kind="openai", model=model, url=server.url)
            out = suite.out.parent / model
            found, said = suite.run(server, benchmark, backend=backend, out=out)
            with (suite.out.parent / "evaluations.jsonl").open("a") as log:
                log.write("cut {\n")
    assert found["test_models"] == 2 and "2 models have seen" in said


def test_notes_stand_below_their_benchmark(tmp_path, tiny_model):
    """A context too short for the prompts: they are cut, and the terminal says so."""
    suite, said = Suite(tmp_path), []
    (suite.data / "ifeval" / "input.jsonl").write_text(
        '{"key": 1, "prompt": "' + "a long prompt " * 40 + '", "instruction_id_list": '
        '["punctuation:no_comma"], "kwargs": [{}]}\n'
    )
    backend = BackendOptions(kind="hf", model=str(tiny_model), device="cpu", dtype="float32")
    out = tmp_path / "hf"
    for _ in range(2):
        said.clear()
        evaluate(
            Options(
                backend=backend,
                out=out,
                name="m",
                spec=EvaluateSpec(benchmarks=("ifeval",), data_dir=str(suite.data)),
                say=said.append,
            )
        )
        line, note, *_ = said[0].splitlines()
        assert line.startswith(" IFEval")
        assert "note: the context left 1 answers less" in note
        assert "1 prompts were cut on the left" in said[0]
    assert "(done before)" in line
    assert os.environ.get("HF_HUB_OFFLINE")
