"""Protects `deltalearn evaluate`: the whole suite end to end, items kept, nothing asked twice.

A tiny model answers twenty items of each of the twelve through lm_eval's transformers back-end,
with local data and no network. Scores are those that the graders give to the kept outputs.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn, fails
from helpers.data import DATA, drop_data

pytest.importorskip("lm_eval")

from deltalearn.evaluate.harness.cache import FILE
from deltalearn.evaluate.harness.results import summary
from deltalearn.evaluate.tulu3.gsm8k import grader as gsm8k_grader
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME

pytestmark = [pytest.mark.slow, pytest.mark.data]
LIMIT = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    from helpers.tiny_evaluated import make

    return make(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The shared data, with a train split for DROP."""
    folder = tmp_path_factory.mktemp("data")
    for source in DATA.iterdir():
        if not source.name.startswith("drop"):
            (folder / source.name).symlink_to(source)
    return drop_data(folder)


def evaluate(place: Path, data: Path, out: Path, *options: str, limit: int = LIMIT):
    return deltalearn(
        "evaluate", place, "--out", out, "--data-dir", data, "--limit", str(limit), "--batch-size",
        "16", "--device", "cpu", "--dtype", "float32", *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(place, data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("evals") / "tiny"
    return out, evaluate(place, data, out, "--allow-code")


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def items(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / "items" / f"{name}.parquet").to_pylist()


def test_the_whole_suite_runs(whole):
    out, result = whole
    assert result.returncode == 0, result.stdout + result.stderr
    found = results(out)
    assert set(found["benchmarks"]) == {b.name for b in ALL}
    assert found["not_run"] == {}
    for benchmark in ALL:
        entry = found["benchmarks"][benchmark.name]
        expected = 19 if benchmark.name == "drop" else LIMIT
        assert (entry["n"], entry["full_n"]) == (expected, benchmark.full)
        assert entry["subset"] is True
        rows = items(out, benchmark.name)
        assert len({row["id"] for row in rows}) == len(rows) == expected
        assert all(row["prompt"] and row["gold"] for row in rows)
        line = next(x for x in result.stdout.splitlines() if x.startswith(f" {benchmark.title} "))
        assert f"n {expected} of {benchmark.full:,}: a SUBSET" in line
        assert benchmark.metric in line and benchmark.aggregation in line
    assert found["benchmarks"]["humaneval"]["samples"] == 20
    assert found["average"]["mmlu"] == "mmlu_cot"
    assert (
        "average: " in result.stdout and "without AlpacaEval, which is not judged" in result.stdout
    )


def test_scores_are_those_of_the_kept_outputs(whole):
    out, _ = whole
    rows = items(out, "gsm8k")
    again = [gsm8k_grader.grade(row["output"], json.loads(row["gold"])) for row in rows]
    assert [grade.score for grade in again] == [row["score"] for row in rows]
    assert [grade.extracted for grade in again] == [row["extracted"] for row in rows]
    for benchmark in ALL:
        entry = results(out)["benchmarks"][benchmark.name]
        if benchmark.kind == "judged":
            assert entry["score"] is None
            continue
        rows = items(out, benchmark.name)
        groups: dict[str, list[float]] = {}
        for row in rows:
            name = row["stratum"] if benchmark.aggregation == "macro" else ""
            groups.setdefault(name, []).append(row["score"])
        means = [sum(values) / len(values) for values in groups.values()]
        assert entry["score"] == pytest.approx(sum(means) / len(means))


def test_letters_are_scored_by_likelihood(whole):
    """The letter of MMLU and MC2 of TruthfulQA, from the kept log-likelihoods."""
    out, _ = whole
    for row in items(out, "mmlu_mc"):
        values = json.loads(row["output"])
        assert row["extracted"] == "ABCD"[values.index(max(values))]
        assert row["score"] == float(row["extracted"] == json.loads(row["gold"]))
    for row in items(out, "truthfulqa"):
        likely = [math.exp(v) for v in json.loads(row["output"])]
        labels = json.loads(row["gold"])
        true = sum(p for p, label in zip(likely, labels, strict=True) if label == 1)
        every = sum(p for p, label in zip(likely, labels, strict=True) if label is not None)
        assert row["score"] == pytest.approx(true / every, abs=1e-9)


def test_a_second_run_asks_nothing(whole, place, data):
    out, _ = whole
    before = (out / "results.json").stat().st_mtime_ns, answers(out)
    again = evaluate(place, data, out, "--allow-code")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(done before)") == len(ALL)
    assert answers(out) == before[1]


def test_a_score_stands_when_permission_is_gone(whole, place, data):
    out, _ = whole
    again = evaluate(place, data, out, "--benchmark", "humaneval")
    assert again.returncode == 0, again.stderr
    assert "done before; now" in again.stdout and "--allow-code" in again.stdout
    assert results(out)["not_run"] == {}


def test_another_argument_of_the_model_asks_anew(place, data, tmp_path):
    """It may change answers without showing in a request."""
    only = ("--benchmark", "popqa")
    for options in ((), ("--backend-option", "softmax_dtype=float32")):
        result = evaluate(place, data, tmp_path / "m", *only, *options, limit=4)
        assert result.returncode == 0, result.stderr
    assert answers(tmp_path / "m") == 8
    assert results(tmp_path / "m")["benchmarks"]["popqa"]["arguments"] == {
        "softmax_dtype": "float32"
    }


def answers(out: Path) -> int:
    return sqlite3.connect(out / FILE).execute("SELECT count(*) FROM entries").fetchone()[0]


def test_a_larger_limit_asks_for_the_new_items_alone(place, data, tmp_path):
    options = ("--benchmark", "gsm8k", "--benchmark", "popqa")
    assert evaluate(place, data, tmp_path / "m", *options, limit=10).returncode == 0
    assert answers(tmp_path / "m") == 20
    other = evaluate(place, data, tmp_path / "m", *options, limit=15)
    fails(other, "limit: 10 there, 15 now", "--update")
    assert evaluate(place, data, tmp_path / "m", *options, "--update", limit=15).returncode == 0
    assert answers(tmp_path / "m") == 30
    assert results(tmp_path / "m")["benchmarks"]["gsm8k"]["n"] == 15


def test_killed_and_resumed_equals_uninterrupted(whole, place, data, tmp_path):
    """Killed while it answers; what was answered is kept, and every score is the same."""
    out, _ = whole
    command = [
        sys.executable, "-m", "deltalearn", "evaluate", str(place), "--out", str(tmp_path / "m"),
        "--data-dir", str(data), "--limit", str(LIMIT), "--batch-size", "16", "--device", "cpu",
        "--dtype", "float32", "--allow-code", "--benchmark", "humaneval", "--benchmark", "mmlu_mc",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    database = tmp_path / "m" / FILE
    deadline = time.monotonic() + 120
    while not (database.is_file() and started(database)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = answers(tmp_path / "m")
    assert kept > 0
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    for name in ("humaneval", "mmlu_mc"):
        assert items(tmp_path / "m", name) == items(out, name), "sampled programs too"


def started(database: Path) -> bool:
    try:
        return sqlite3.connect(database).execute("SELECT count(*) FROM entries").fetchone()[0] > 0
    except sqlite3.OperationalError:
        return False


def test_what_cannot_run_is_named_and_the_rest_runs(place, tmp_path):
    """No permission for code; no data of GSM8K."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ifeval").symlink_to(DATA / "ifeval")
    chosen = [t for n in ("humaneval", "gsm8k", "ifeval") for t in ("--benchmark", n)]
    result = evaluate(place, tmp_path / "data", tmp_path / "m", *chosen, limit=2)
    assert result.returncode == 0, result.stderr
    found = results(tmp_path / "m")
    assert "--allow-code" in found["not_run"]["humaneval"]
    assert "gsm8k/test.jsonl" in found["not_run"]["gsm8k"]
    assert set(found["benchmarks"]) == {"ifeval"}
    assert found["average"] is None
    assert "--allow-code" in result.stdout


def test_dev_items_are_for_choosing_and_test_views_are_counted(place, data, tmp_path):
    only = ("--benchmark", "popqa")
    dev = evaluate(place, data, tmp_path / "evals" / "dev", *only, "--split", "dev", limit=5)
    rest = evaluate(place, data, tmp_path / "evals" / "rest", *only, "--split", "held-out", limit=5)
    assert dev.returncode == rest.returncode == 0, dev.stderr + rest.stderr
    assert results(tmp_path / "evals" / "dev")["split"] == "dev"
    ids = [{row["id"] for row in items(tmp_path / "evals" / n, "popqa")} for n in ("dev", "rest")]
    assert not ids[0] & ids[1]
    log = (tmp_path / "evals" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["split"] for line in log] == ["dev", "held-out"]
    assert results(tmp_path / "evals" / "rest")["test_models"] == 1


def test_a_judge_at_a_server_reads_every_answer_once(place, data, tmp_path):
    """One that always prefers what it sees first: half of the comparisons, since order is drawn."""
    pytest.importorskip("alpaca_eval")
    from helpers.fault_server import FaultServer, Reply, answer_to

    options = (
        "--benchmark", "alpaca_eval", "--judge", "weighted_alpaca_eval_gpt4_turbo",
        "--judge-model", "model", "--judge-text-only", "--judge-key-env", "JUDGE_KEY",
    )  # fmt: skip
    out = tmp_path / "m"
    reply = Reply(200, answer_to("x", message={"content": "m"}))
    with FaultServer(lambda question, attempt: reply) as server:
        command = [
            sys.executable, "-m", "deltalearn", "evaluate", str(place), "--out", str(out),
            "--data-dir", str(data), "--limit", "40", "--batch-size", "16", "--device", "cpu",
            *options, "--judge-url", server.url, "--concurrency", "3",
        ]  # fmt: skip
        environment = {**os.environ, "JUDGE_KEY": "sk-secret-judge"}
        for _ in range(2):
            result = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=300
            )
            assert result.returncode == 0, result.stderr
        assert server.asked.total() == 40
        assert server.most_in_flight <= 3
        shown = {h.get("authorization") for h in server.headers}
    assert shown == {"Bearer sk-secret-judge"}
    entry = results(out)["benchmarks"]["alpaca_eval"]
    assert entry["judge"] and "model" in entry["judge"]
    assert f"judged by {entry['judge']}" in result.stdout
    win_rate = entry["alpaca_eval"]["win_rate"]["win_rate"]
    assert 0.2 < win_rate < 0.8
    rows = items(out, "alpaca_eval")
    assert sum(row["score"] for row in rows) / 40 == pytest.approx(win_rate)
    for file in out.rglob("*"):
        assert not file.is_file() or b"sk-secret-judge" not in file.read_bytes(), file


def test_bad_options_are_named(place, data, tmp_path):
    fails(evaluate(place, data, tmp_path / "m", "--benchmark", "gsm9k"), "gsm9k", "gsm8k")
    fails(evaluate(place, data, tmp_path / "m", "--split", "train"), "train", "held-out")
    fails(evaluate(place, data, tmp_path / "m", "--backend", "tgi"), "tgi", "vllm")
    fails(evaluate(place, data, tmp_path / "m", "--concurrency", "4"), "no effect", "--url")
    fails(evaluate(place, tmp_path / "nowhere", tmp_path / "m"), "the data directory is not there")


def test_errors_by_hand():
    """Two strata of two: SE = sqrt(.25 + .0) / 2; clusters of one passage each: by hand."""

    def mean_and_error(scores, strata, clusters=()):
        places = zip(strata, clusters or [""] * len(scores), strict=True)
        rows = [
            {"score": score, "stratum": stratum, "cluster": cluster}
            for score, (stratum, cluster) in zip(scores, places, strict=True)
        ]
        entry = summary(BY_NAME["mmlu_cot"], rows)
        return entry["score"], entry["stderr"]

    mean, error = mean_and_error([0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"])
    assert mean == 0.75
    assert error == pytest.approx(math.sqrt(0.5 / 2) / 2)
    mean, error = mean_and_error([0.0, 0.0, 1.0, 1.0], [""] * 4, ["p", "p", "q", "q"])
    # Sums of deviations by cluster: -1 and 1; (1 + 1) x 2 / 1 = 4; sqrt(4) / 4.
    assert (mean, error) == (0.5, 0.5)
    assert mean_and_error([1.0, 0.0], ["a", "b"]) == (0.5, None)
    assert os.environ.get("HF_HUB_OFFLINE"), "no test of this file may reach the hub"
