"""Protects the scores of a run: arms, weak models and the student on the suite, on own questions
and on a task of lm_eval alike, in the command's own directories; killed or not, the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails
from helpers.launched import TORCHRUN, ended, kill_all, start, wait_for

pytest.importorskip("lm_eval")

from helpers.results import item_rows

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.named import check_names, load_named
from deltalearn.evaluate.harness.results import read_results
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.pipeline.lock import Hold

RECIPE = """
name: small
seeds: [0]
device: cpu
dtype: float32
student: {path: TINY}
models: {a: {path: TINY}, b: {path: OTHER}}
prompts: {source: prompts.jsonl}
generate: {max_tokens: 8, temperature: 1.0}
tune: {lr: 1.0e-3, steps: 2, batch_size: 4}
arms:
  base: {}
  delta: {chosen: a, rejected: b}
evaluate:
  benchmarks: [mine, ifeval, own_abc]
  include_path: tasks
  data_dir: data
  questions:
    mine:
      {source: questions.jsonl, task_column: task, metrics: [loglik, greedy_accuracy],
       scorer: contains, max_tokens: 8}
"""
TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
PLACES = ("models/student", "models/a", "models/b", "arms/delta/seed-0")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_task(folder: Path, name: str, old: str = "", new: str = "") -> None:
    rows = [
        {"question": f"{i} or {i + 1}?", "choices": ["yes", "no", "true"], "answer": i % 3}
        for i in range(9)
    ]
    data = write_rows(folder / f"{name}.jsonl", rows)
    text = TASK.replace("NAME", name).replace("DATA", str(data))
    text = text.replace(old, new) if old else text
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tiny models, prompts, questions, IFEval and a task; recipe.yaml of a run of all."""
    import torch
    from helpers.served_suite import data
    from helpers.tiny_evaluated import make
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("stage")
    tiny, other = make(folder / "tiny"), folder / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * 0.3)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(other)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {i} of {i * 7}"} for i in range(30)])
    questions = [
        {"prompt": f"what is {i}", "answer": ("a", "the")[i % 2], "task": f"t{i % 2}"}
        for i in range(16)
    ]
    write_rows(folder / "questions.jsonl", questions)
    data(folder / "data")
    write_task(folder / "tasks", "own_abc")
    text = RECIPE.replace("TINY", str(tiny)).replace("OTHER", str(other))
    (folder / "recipe.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    done = run(folder, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "whole"


def run(folder: Path, out: str, *options: str) -> subprocess.CompletedProcess:
    return deltalearn("run", "recipe.yaml", "--out", out, *options, cwd=folder)


def everything(scores: Path) -> dict[str, list[dict]]:
    """The items of all benchmarks of all directories."""
    return {
        f"{place}/{name}": item_rows(scores / place, name)
        for place in PLACES
        for name in read_results(scores / place)["benchmarks"]
    }


@pytest.mark.slow
def test_all_are_scored_alike_and_keep_each_item(whole):
    for place in PLACES:
        results = read_results(whole / "scores" / place)
        entries = results["benchmarks"]
        assert set(entries) == {"mine.loglik", "mine.greedy_accuracy", "ifeval", "own_abc"}
        assert [e["n"] for e in entries.values()] == [16, 16, 12, 9]
        assert results["not_run"] == {} and results["split"] == "test"
        for name, entry in entries.items():
            rows = item_rows(whole / "scores" / place, name)
            assert len({row["id"] for row in rows}) == len(rows) == entry["n"]
            assert all(row["prompt"] and row["gold"] for row in rows)
        for row in item_rows(whole / "scores" / place, "mine.greedy_accuracy"):
            grade = SCORERS["contains"].grade(row["output"], row["gold"])
            assert (row["score"], row["extracted"]) == (grade.score, grade.extracted)
    model = read_results(whole / "scores" / "arms/delta/seed-0")["model"]
    assert model["name"] == "small/delta seed 0"
    assert (model["run"], model["arm"], model["seed"]) == ("small", "delta", 0)
    assert entries["mine.greedy_accuracy"]["metric"] == "reference in the greedy answer"
    assert read_results(whole / "scores" / "models/b")["model"]["name"] == "small/b"


@pytest.mark.slow
def test_the_command_gives_the_scores_of_the_run(folder, whole):
    options = ("--recipe", "recipe.yaml", "--set", "device=cpu")
    done = deltalearn("evaluate", folder / "tiny", "--out", "evals/tiny", *options, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in read_results(folder / "evals" / "tiny")["benchmarks"]:
        ours = item_rows(folder / "evals" / "tiny", name)
        assert ours == item_rows(whole / "scores" / "models" / "student", name)
    again = deltalearn("evaluate", folder / "tiny", "--out", "evals/tiny", *options, cwd=folder)
    assert again.stdout.count("(done before)") == 4


@pytest.mark.slow
def test_another_benchmark_leaves_the_scores_of_the_others(folder, whole):
    before = {p: p.stat().st_mtime_ns for p in (whole / "scores").rglob("ifeval.parquet")}
    changed = "evaluate.questions.mine.metrics=[loglik, greedy_accuracy, expected_accuracy]"
    done = run(folder, "whole", "--set", changed, "--update", "--until", "evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine.expected_accuracy" in read_results(whole / "scores/models/b")["benchmarks"]
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "scores").rglob("ifeval.parquet")}
    assert run(folder, "whole", "--update").returncode == 0
    assert not list((whole / "scores").rglob("mine.expected_accuracy.parquet"))


@pytest.mark.slow
def test_kills_change_nothing_and_cost_no_answer(folder, whole):
    run(folder, "killed", "--until", "tune")
    command = [sys.executable, "-m", "deltalearn", "run", "recipe.yaml", "--out", "killed"]
    for wait in (9, 10, 11, 12):
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as child:
            time.sleep(wait)
            os.kill(child.pid, signal.SIGKILL)
    assert run(folder, "killed").returncode == 0
    assert everything(folder / "killed" / "scores") == everything(whole / "scores")


def told(scores: Path) -> dict[str, dict]:
    """Results without what is another one each time: seconds, places, and who came before."""
    found = {place: read_results(scores / place) for place in PLACES}
    for results in found.values():
        del results["test_models"], results["model"]["path"]
        for entry in results["benchmarks"].values():
            del entry["seconds"]
    return found


def seen(scores: Path) -> list[tuple]:
    rows = map(json.loads, (scores / "evaluations.jsonl").read_text().splitlines())
    return sorted((row["model"], row["benchmark"], row["items"], row["docs"]) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"), [([], ["--parallel", "2"]), (TORCHRUN, [])], ids=["alone", "torchrun"]
)
def test_several_at_a_time_they_get_the_same_scores(folder, whole, launcher, options):
    """Stopped, killed and run again, with one log of it for all."""
    out = folder / ("launched" if launcher else "parallel")
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("scores", "report.html"))
    command = ["recipe.yaml", "--out", out, *options]
    killed = start(launcher, *command, cwd=folder)
    wait_for(lambda: len(list(out.glob("scores/*/**/results.json"))) > 1, killed)
    kill_all(killed)
    if not launcher:
        stopped = start([], *command, cwd=folder)
        wait_for(lambda: len(list(out.glob("scores/*/**/ifeval.parquet"))) > 1, stopped)
        stopped.send_signal(signal.SIGINT)
        code, _, errors = ended(stopped)
        assert code == 130 and "evaluate: stopped" in errors and "Traceback" not in errors
    code, said, errors = ended(start(launcher, *command, cwd=folder))
    assert code == 0, errors
    assert said.count("evaluate/models/b ") == 1 and "tune/" not in said
    assert told(out / "scores") == told(whole / "scores")
    assert everything(out / "scores") == everything(whole / "scores")
    asked = read_results(whole / "scores" / PLACES[0])["benchmarks"]  # others may have been before
    assert seen(out / "scores") == [row for row in seen(whole / "scores") if row[1] in asked]


@pytest.mark.slow
def test_several_at_a_time_a_failure_names_its_model(folder, whole):
    out = folder / "failing"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("scores", "report.html"))
    (out / "arms/delta/seed-0/final/model.safetensors").write_bytes(b"no weights")
    done = run(folder, "failing", "--parallel", "4")
    fails(done, "evaluate arms/delta/seed-0: ")
    assert read_results(out / "scores/models/b")["not_run"] == {}


def test_two_at_once_is_refused(folder):
    with Hold(folder / "evals" / "held"):
        done = deltalearn(
            "evaluate", folder / "tiny", "--out", "evals/held", "--benchmark", "ifeval", cwd=folder
        )
    fails(done, "another deltalearn process is running here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["evaluate.benchmarks=[mine, own_abd]"], "near: own_abc"),
        (["evaluate.benchmarks=[mine, humaneval]"], "evaluate.allow_code: true"),
        (["evaluate.backend={kind: openai, url: 'http://x/v1'}"], "a server has none of the arms"),
        (["evaluate.questions.mine.scorer=judge"], "judge compares nothing yet"),
        (
            [
                "evaluate.benchmarks=[mine, alpaca_eval]",
                "evaluate.limit=4",
                "evaluate.judge.evaluator=weighted_alpaca_eval_gpt4_turbo",
                "evaluate.judge.url=http://127.0.0.1:9/v1",
            ],
            "evaluate.limit: 4 items are too few",
        ),
        (["evaluate.include_path=nowhere"], "nowhere: the directory of lm_eval tasks is not"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_is_made(folder, changes, message):
    done = run(folder, "refused", *(part for change in changes for part in ("--set", change)))
    fails(done, message)
    assert not (folder / "refused" / "responses.sqlite").exists()


@pytest.mark.slow
def test_only_what_has_a_score_for_each_item_is_taken(tmp_path):
    write_task(tmp_path, "rolling", "multiple_choice", "loglikelihood_rolling")
    write_task(tmp_path, "worse", "better: true", "better: false")
    check_names(["rolling", "worse"], str(tmp_path), ())
    with pytest.raises(UserError, match="has no score for each item"):
        load_named("rolling", str(tmp_path))
    with pytest.raises(UserError, match=r"none of its metrics \(acc\) is a mean"):
        load_named("worse", str(tmp_path))
