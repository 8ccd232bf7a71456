"""Protects hours: what can be known to be wrong at the start is said at the start.

By `run` itself before anything is generated, by `run --check`, and in what a dry run lists.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.cli import LADDER, deltalearn, fails, small

from deltalearn.errors import UserError
from deltalearn.pipeline import missing
from deltalearn.pipeline.first_look import check_run
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_estimate import estimate_run
from deltalearn.pipeline.run_options import Rates, RunOptions
from deltalearn.recipe import load_recipe

OWN = "evaluate.questions.lab"
FILES = {
    "empty.jsonl": "",
    "words.jsonl": '{"prompt": "how many?", "answer": "several"}\n',
    "one.jsonl": '{"prompt": "1 and 1?", "answer": "2"}\n',
}
MISTAKES = {
    "questions missing": (f"{OWN}.source=nope.jsonl", f"{OWN}: nope.jsonl is not on this disk"),
    "questions empty": (f"{OWN}.source=empty.jsonl", "empty.jsonl: no evaluation item in it"),
    "no such column": (f"{OWN}.answer_column=target", "column 'target' must be a non-empty str"),
    "reference unfit": (
        f"{OWN}={{source: words.jsonl, metrics: [greedy_accuracy], scorer: last_number}}",
        "no number in the reference 'several'",
    ),
    "nothing selected": (
        "evaluate={questions: {lab: {source: one.jsonl}}, split: dev}",
        "no item is selected by split dev",
    ),
    "student without template": ("student.path=./plain", "student: ./plain: the tokenizer has no"),
    "model without template": ("models.xs.path=./plain", "xs: ./plain: the tokenizer has no chat"),
    "shard alone": ("tune.shard=true", "arms.delta: tune.shard splits the student over processes"),
    "tracker": ("tune.tracker=wandb", "package wandb, for tune.tracker: pip install"),
    "adapters": ("tune.lora={}", "package peft: pip install"),
    "dev missing": ("tune.dev={source: nope.jsonl}", "tune.dev: nope.jsonl is not on this disk"),
    "dev empty": ("tune.dev={source: empty.jsonl}", "empty.jsonl: no evaluation item in it"),
    "batch": ("tune.batch_size=64", "15 prompts make at most 15 pairs to train on, which do not"),
    "held out": ("tune.eval_pairs=12", "at most 3 pairs to train on, which do not fill one batch"),
    "arm's own": ("arms.delta.tune={batch_size: 64}", "do not fill one batch of 64"),
    "judge's key": (
        "evaluate={benchmarks: [alpaca_eval], judge: {evaluator: weighted_alpaca_eval_gpt4_turbo}}",
        "key of the judge: the environment variable OPENAI_API_KEY is not set",
    ),
    "benchmark's data": (
        "evaluate={benchmarks: [gsm8k], data_dir: .}",
        "data of GSM8K: no gsm8k/test.jsonl in .",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    small(folder)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    shutil.copytree(LADDER / "xs", folder / "plain")
    (folder / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    config = folder / "plain" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(folder, monkeypatch):
    """In the folder, on a machine without trackers, peft and keys."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = missing.find_spec
    gone = {"wandb", "peft"}
    monkeypatch.setattr(missing, "find_spec", lambda name: None if name in gone else found(name))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_generated(mistake, tmp_path):
    change, message = MISTAKES[mistake]
    loaded, out = load_recipe("small.yaml", [change]), tmp_path / "run"
    with pytest.raises(UserError) as error:
        run_recipe(loaded, RunOptions(out), say=lambda line: None)
    assert message in str(error.value)
    assert not list(out.glob("responses*")) and not (out / "arms").exists()
    with pytest.raises(UserError) as checked:
        check_run(loaded, RunOptions(tmp_path / "other"))
    assert str(checked.value) == str(error.value)
    assert not (tmp_path / "other").exists()


def test_all_mistakes_are_told_at_once(tmp_path):
    several = ("tracker", "shard alone", "questions missing", "model without template")
    changes = [MISTAKES[name][0] for name in several]
    with pytest.raises(UserError) as error:
        run_recipe(load_recipe("small.yaml", changes), RunOptions(tmp_path / "run"))
    for name in several:
        assert MISTAKES[name][1] in str(error.value)
    assert len(str(error.value).splitlines()) == len(several)


def test_what_a_stage_needs_that_is_not_reached_is_not_asked_for(tmp_path):
    loaded = load_recipe("small.yaml", [MISTAKES["tracker"][0], MISTAKES["questions missing"][0]])
    assert "nothing stands in the way" in check_run(loaded, RunOptions(tmp_path, until="pairs"))


def test_the_dry_run_lists_them_but_not_what_a_launcher_will_change(tmp_path):
    changes = [MISTAKES[name][0] for name in ("shard alone", "no such column", "tracker")]
    told = estimate_run(load_recipe("small.yaml", changes), RunOptions(tmp_path / "run"), Rates())
    assert MISTAKES["no such column"][1] in told and MISTAKES["tracker"][1] in told
    assert MISTAKES["shard alone"][1] not in told


@pytest.mark.slow
def test_check_says_so_and_writes_nothing(tmp_path):
    done = deltalearn("run", "small.yaml", "--check", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "small: nothing stands in the way: 15 prompts, 2 models that answer, "
        "1 tuned student: 1 arm x 1 seed (0)\n"
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    done = deltalearn("run", "small.yaml", "--check", "--out", tmp_path / "run")
    fails(done, "not a run of deltalearn")


def test_how_many_students_will_be_trained_is_said_at_the_start_and_before(tmp_path):
    """The seeds that nobody gave count: an arm is three students, which is days for a large one."""
    loaded = load_recipe("small.yaml", ["seeds=[3, 4, 5]", "arms.two={chosen: s, rejected: xs}"])
    says = "6 tuned students: 2 arms x 3 seeds (3, 4, 5)"
    assert says in check_run(loaded, RunOptions(out=tmp_path / "run"))
    assert says in estimate_run(loaded, RunOptions(tmp_path / "run"), Rates())
    said: list[str] = []
    options = RunOptions(out=tmp_path / "run", until="prompts")
    run_recipe(loaded, options, say=said.append)
    assert says not in said, "nothing is trained until then"


@pytest.mark.slow
def test_what_is_done_is_not_announced_again(tmp_path):
    loaded = load_recipe("small.yaml", ["seeds=[0, 1]"])
    for again in (False, True):
        said: list[str] = []
        run_recipe(loaded, RunOptions(out=tmp_path / "run"), say=said.append)
        assert ("2 tuned students: 1 arm x 2 seeds (0, 1)" in said) != again
