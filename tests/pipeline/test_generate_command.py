"""Protects `deltalearn generate` and `pairs` as a person uses them: counts, exit codes, resuming.

Nothing is asked twice and nothing is lost: not by stopping, not by adding prompts or models; errors
are told and asked again only on demand, and the server's key is never written anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.cli import deltalearn, fails, small
from helpers.fault_server import FAULTS, FaultServer, Reply, answer_to, well
from helpers.generation import counts_of_pairs, prompts_file, say_no_to_q2

from deltalearn.util.signals import ACKNOWLEDGED

KEY = "sk-do-not-show-me-4711"


@pytest.fixture
def command(tmp_path):
    """`command(server, *options)`: ask it three questions as the model `model`."""

    def command(server: FaultServer, *options: str, models=("a=model",), count: int = 3, **env):
        named = [text for model in models for text in ("--model", model)]
        return deltalearn(
            "generate", *named, "--prompts", prompts_file(tmp_path, count), "--url", server.url,
            "--out", tmp_path / "out", *options, **env,
        )  # fmt: skip

    return command


@pytest.mark.slow
def test_answers_then_nothing_to_do(command, tmp_path):
    with FaultServer(well) as server:
        first = command(server)
        again = command(server)
    assert first.returncode == 0, first.stderr
    assert "requests 3" in first.stdout and "generated 3" in first.stdout
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    store = tmp_path / "out" / "responses.sqlite"
    next_one = f"answers: {store}; next: `deltalearn responses export {store} answers.jsonl`"
    assert first.stdout.splitlines()[-1] == next_one
    assert sum(server.asked.values()) == 3
    assert first.stderr == "", "no bars where there is no terminal"
    listed = deltalearn("responses", "count", tmp_path / "out").stdout
    assert listed.splitlines() == ["responses 3", "truncated 0", "errors 0"]


@pytest.mark.slow
def test_more_prompts_and_models_ask_for_what_is_new_alone(command):
    with FaultServer(well) as server:
        server.models = Reply(404, {})  # says nothing of its models, so that any name will do
        command(server)
        command(server, "--update", count=5)
        grown = dict(server.asked)
        result = command(server, "--update", models=("a=model", "b=other"), count=5)
    assert result.returncode == 0, result.stderr
    assert grown == dict.fromkeys(("q0", "q1", "q2", "q3", "q4"), 1)
    assert [body["model"] for body in server.bodies] == ["model"] * 5 + ["other"] * 5


@pytest.mark.slow
def test_another_limit_is_asked_for_anew_and_must_be_meant(command):
    with FaultServer(well) as server:
        command(server)
        refused = command(server, "--max-tokens", "9")
        meant = command(server, "--max-tokens", "9", "--update")
    fails(refused, "--update", "max_tokens")
    assert meant.returncode == 0
    assert set(server.asked.values()) == {2}


@pytest.mark.slow
def test_errors_have_an_exit_code_and_are_asked_again_on_demand(command, tmp_path):
    with FaultServer(say_no_to_q2) as server:
        first = command(server)
        again = command(server)
        assert first.returncode == again.returncode == 3
        assert "1 of 3 requests ended in errors" in first.stdout
        assert "--retry-errors" in first.stdout
        assert server.asked["q2"] == 1, "an error is an answer until it is asked for again"
        kinds = deltalearn("responses", "errors", tmp_path / "out").stdout
        assert "refused" in kinds and "this prompt is not wanted" in kinds
        server.plan = well
        mended = command(server, "--retry-errors")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert dict(server.asked) == {"q0": 1, "q1": 1, "q2": 2}


@pytest.mark.slow
def test_a_refused_key_ends_with_the_remedy_and_is_seen_nowhere(command, tmp_path):
    echo = Reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with FaultServer(lambda question, attempt: echo) as server:
        unset = command(server, "--key-env", "MY_KEY", MY_KEY="")
        refused = command(server, "--key-env", "MY_KEY", MY_KEY=KEY)
        server.plan = lambda q, n: Reply(400, {"error": {"message": f"{q}: bad, says {KEY}"}})
        recorded = command(server, "--key-env", "MY_KEY", MY_KEY=KEY)
    fails(refused, "does not accept the key", "key_env")
    assert sum(server.asked.values()) <= 6, "refused once, and the rest is not tried"
    fails(unset, "MY_KEY", "export")
    assert recorded.returncode == 3
    sent = [h for h in server.headers if "authorization" in h]
    assert sent and {h["authorization"] for h in sent} == {f"Bearer {KEY}"}
    shown = refused.stdout + refused.stderr + recorded.stdout + recorded.stderr
    assert KEY not in shown
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert "MY_KEY" in (tmp_path / "out" / "run.json").read_text()


def test_an_url_with_a_password_is_refused_without_repeating_it(tmp_path):
    result = deltalearn(
        "generate", "--model", "a=m", "--prompts", prompts_file(tmp_path, 1), "--url",
        f"http://me:{KEY}@localhost:1/v1", "--out", tmp_path / "out",
    )  # fmt: skip
    fails(result, "must not hold a password")
    assert KEY not in result.stdout + result.stderr
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_a_dry_run_counts_and_asks_nothing(command, tmp_path):
    prices = "models.a.server.prices={prompt: 10.0, completion: 20.0}"
    with FaultServer(well) as server:
        command(server, count=2)
        result = command(
            server, "--max-tokens", "1000", "--set", prices, "--dry-run", "--update", count=4
        )
        asked = sum(server.asked.values())
        cached = command(server, "--dry-run", count=4)
    assert result.returncode == 0, result.stderr
    assert asked == 2, "those before"
    assert "a: 4 requests, 0 answered already, 4 to ask" in result.stdout
    assert "a: 4 requests, 2 answered already, 2 to ask" in cached.stdout
    # Four answers of at most 1,000 tokens at 20 a million, and four prompts of two characters.
    assert "answer tokens: about 20 (5 each" in result.stdout
    assert "at most 4,000" in result.stdout
    assert "cost: about 0.00, at most 0.08" in result.stdout


def test_cost_is_counted(command):
    with FaultServer(well) as server:
        prices = "models.a.server.prices={prompt: 1000.0, completion: 100000.0}"
        result = command(server, "--set", prices)
    assert result.returncode == 0, result.stderr
    # Three answers of 7 and 5 tokens: 3 x (7 x 0.001 + 5 x 0.1).
    assert "cost 1.521" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_what_is_in_flight_and_says_how_to_go_on(tmp_path, number):
    release = threading.Event()
    prompts_file(tmp_path, 40)

    def plan(question: str, attempt: int):
        delay = 0.0 if release.is_set() else 0.8
        return Reply(200, answer_to(question), delay=delay)

    arguments = [
        sys.executable, "-m", "deltalearn", "generate", "--model", "a=model", "--prompts",
        str(tmp_path / "prompts.jsonl"), "--concurrency", "5", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    with FaultServer(plan) as server:
        arguments += ["--url", server.url]
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        while sum(server.asked.values()) < 8:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        asked = sum(server.asked.values())
        assert process.returncode == 128 + number
        assert said.count(ACKNOWLEDGED) == 1
        assert f"stopped, {asked} of 40 requests done" in said, said
        assert "run the same command again to resume" in said
        release.set()
        resumed = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert resumed.returncode == 0
    assert set(server.asked.values()) == {1}, "nothing twice"
    assert len(server.asked) == 40


@pytest.mark.slow
def test_pairs_of_a_store_leave_errors_out(command, tmp_path):
    def plan(question: str, attempt: int):
        model = server.bodies[-1]["model"]
        if (question, model) == ("q1", "small"):
            return FAULTS["400"]
        return Reply(200, answer_to(question, message={"content": f"{model} says {question}"}))

    with FaultServer(plan) as server:
        server.models = Reply(404, {})
        result = command(server, models=("large=large", "small=small"))
    assert result.returncode == 3
    made = deltalearn(
        "pairs", tmp_path / "out", "--chosen", "large", "--rejected", "small", "--out",
        tmp_path / "pairs.parquet",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "pairs 2" in made.stdout and "dropped: error 1" in made.stdout
    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert sorted(row["chosen"][0]["content"] for row in rows) == [
        "large says q0",
        "large says q2",
    ]
    fails(
        deltalearn(
            "pairs", tmp_path / "out", "--chosen", "large", "--rejected", "tiny", "--out",
            tmp_path / "pairs.parquet",
        ),
        "tiny", "large", "small",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--set", "generate.vllm.memory=0.5"], ["vllm has no effect"]),
        (["--set", "generate.enginee=vllm"], ["enginee", "engine"]),
        (["--engine", "vllm", "--set", "generate.vllm.python=/no/python"], ["/no/python"]),
        (["--samples", "2"], ["samples has no effect at temperature 0"]),
        (["--url", "localhost:8000", "--device", "auto"], ["http://localhost:8000/v1"]),
    ],
)
def test_options_that_cannot_be_meant(options, texts, tmp_path):
    result = deltalearn(
        "generate", "--model", "a=package://deltalearn.lab/ladder/xs", "--prompts",
        prompts_file(tmp_path, 1), "--out", tmp_path / "out", "--device", "cpu", *options,
    )  # fmt: skip
    fails(result, *texts)


@pytest.mark.slow
def test_vllm_in_a_python_without_it_says_what_to_install(tmp_path):
    result = deltalearn(
        "generate", "--model", "a=package://deltalearn.lab/ladder/xs", "--prompts",
        prompts_file(tmp_path, 1), "--out", tmp_path / "out", "--engine", "vllm", "--device",
        "cpu", "--set", f"generate.vllm.python={sys.executable}",
    )  # fmt: skip
    fails(result, "has no vLLM", "pip install vllm", "generate.vllm.python")


# -- recipes of `run` ----------------------------------------------------------------------------


def served_recipe(path: Path, url: str) -> Path:
    """The small recipe with its rejected model behind a server."""
    file = small(path)
    recipe = yaml.safe_load(file.read_text())
    recipe["models"]["xs"] = {"path": "model", "server": {"url": url}}
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.mark.slow
def test_a_run_with_a_served_model_reaches_its_report(tmp_path):
    """Its answers make pairs; it is not scored, since its weights are not here."""

    def plan(question: str, attempt: int):
        if "abcd" in question and attempt == 1:
            return FAULTS["400"]
        return well(question, attempt)

    with FaultServer(plan) as server:
        recipe = served_recipe(tmp_path, server.url)
        run = ["run", recipe, "--out", tmp_path / "run"]
        first = deltalearn(*run)
        assert first.returncode == 0, first.stdout + first.stderr
        few = counts_of_pairs(tmp_path / "run")
        assert few["dropped"]["error"] == 5
        mended = deltalearn(*run, "--retry-errors")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert server.asked.total() == 20, "15 prompts, and the 5 that failed once more"
    every = counts_of_pairs(tmp_path / "run")
    assert every["dropped"]["error"] == 0
    assert every["pairs"] == few["pairs"] + 5
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["models"]["xs"]["server"] == server.url
    assert "evaluate/models/s" in record["stages"]
    assert "evaluate/models/xs" not in record["stages"]
    assert "served:model" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_generate_does_that_stage_of_a_run(tmp_path):
    recipe = small(tmp_path)
    out = ["--out", tmp_path / "run"]
    dry = deltalearn("generate", recipe, *out, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "s: 15 requests, 0 answered already, 15 to ask" in dry.stdout
    done = deltalearn("generate", recipe, *out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert deltalearn("responses", "count", tmp_path / "run").stdout.startswith("responses 30")
    whole = deltalearn("run", recipe, *out)
    assert whole.returncode == 0, whole.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["stages"]["generate/s"]["counts"]["generated"] == 15
    fails(deltalearn("generate", recipe, "--model", "x=y"), "names its models already")
    fails(deltalearn("generate", recipe, "--url", "http://localhost:1/v1"), "--set models.NAME")


def test_the_keys_environment_is_not_needed_to_look(tmp_path):
    """A dry run and the store's commands work without the key."""
    with FaultServer(well) as server:
        result = deltalearn(
            "generate", "--model", "a=model", "--prompts", prompts_file(tmp_path, 2), "--url",
            server.url, "--key-env", "NOT_SET", "--out", tmp_path / "out", "--dry-run",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "NOT_SET" not in os.environ
    assert "2 to ask" in result.stdout
