"""Protects that every evaluation leaves a recipe by which it can be done again."""

from __future__ import annotations

import json

import pytest
from helpers.cli import deltalearn, fails

from deltalearn.errors import UserError
from deltalearn.pipeline import evaluate
from deltalearn.pipeline.evaluate_recipe import evaluate_recipe, model_name
from deltalearn.recipe import EVALUATE, load_recipe


def test_the_recipe_is_there_before_any_score(tmp_path, tiny_model, monkeypatch):
    """An interrupted evaluation is reproducible too; one that is refused changes nothing."""

    def interrupted(self, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate._Evaluation, "_benchmark", interrupted)
    options = {"student.path": str(tiny_model), "evaluate.benchmarks": ["gsm8k"]}
    asked = load_recipe(None, ["limit=7"], command=EVALUATE, options=options)
    with pytest.raises(KeyboardInterrupt):
        evaluate_recipe(asked, tmp_path / "out")
    file = tmp_path / "out" / "recipe.yaml"
    assert load_recipe(file, command=EVALUATE).recipe == asked.recipe

    monkeypatch.setattr(evaluate._Evaluation, "_benchmark", lambda self, name: None)
    evaluate_recipe(asked, tmp_path / "out")
    before = file.read_text()
    with pytest.raises(UserError, match="has results of something else"):
        evaluate_recipe(
            load_recipe(None, ["limit=9"], command=EVALUATE, options=options), tmp_path / "out"
        )
    assert file.read_text() == before


@pytest.mark.slow
def test_an_evaluation_is_a_recipe_and_leaves_it(tmp_path, tiny_model, write_lines):
    """So that no result is reproducible from the history of a shell alone."""
    questions = write_lines([{"prompt": "fox?", "answer": "dog"}], "questions.jsonl")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"device: cpu\ndtype: float32\nmodels: {{weak: {{path: {tiny_model}}}}}\n"
        f"evaluate: {{questions: {{mine: {{source: {questions}, max_tokens: 4}}}}}}\n"
    )
    done = deltalearn("evaluate", "weak", "--recipe", file, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    resolved = tmp_path / "a" / "recipe.yaml"
    assert f"path: {tiny_model}  # command line" in resolved.read_text()
    again = deltalearn("evaluate", "--recipe", resolved, "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    scores = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("a", "b")]
    assert scores[0]["benchmarks"].keys() == scores[1]["benchmarks"].keys() != set()
    fails(deltalearn("evaluate", "--recipe", file), "give a model")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("runs/my/arms/delta/seed-0/final", "my/delta/seed-0"),
        ("runs/my/arms/delta/seed-1/final/", "my/delta/seed-1"),
        ("runs/other/arms/delta/seed-0/final", "other/delta/seed-0"),
        ("runs/my/arms/delta/seed-0/adapter", "my/delta/seed-0/adapter"),
        ("runs/my/arms/delta/seed-0", "my/delta/seed-0"),
        ("runs/tuned/final", "tuned"),
        ("runs/tuned/adapter", "tuned/adapter"),
        ("trl/checkpoint-500", "trl/checkpoint-500"),
        ("axolotl/merged", "axolotl/merged"),
        ("hub/models--org--some-model/snapshots/0123abcd", "some-model"),
        ("student", "student"),
    ],
)
def test_a_model_is_named_after_its_place_so_that_two_are_told_apart(
    tmp_path, monkeypatch, place, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).mkdir(parents=True)
    assert model_name(place) == name
    assert model_name(str(tmp_path / place)) == name
    monkeypatch.chdir(tmp_path / place)
    for inside in (".", "../" + (tmp_path / place).name):
        assert model_name(inside) == name


@pytest.mark.parametrize("name", ["org/final", "org/model", "final", "org/checkpoint-500"])
def test_a_name_at_a_hub_or_server_is_its_last_part(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert model_name(name) == name.rpartition("/")[2]


def test_two_arms_of_a_run_have_directories_of_their_own(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate._Evaluation, "_benchmark", lambda self, name: None)
    for arm in ("delta", "sft"):
        final = tmp_path / "runs" / "my" / "arms" / arm / "seed-0" / "final"
        final.parent.mkdir(parents=True)
        final.symlink_to(tiny_model)
        options = {"student.path": str(final), "evaluate.benchmarks": ["gsm8k"]}
        found = evaluate_recipe(load_recipe(None, command=EVALUATE, options=options))
        assert found["model"]["name"] == f"my/{arm}/seed-0"
        assert (tmp_path / "evals" / "my" / arm / "seed-0" / "results.json").is_file()
