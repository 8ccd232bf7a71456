"""Protects what was trained and scored: it is never overwritten in silence.

Other content behind the same path is another run, refused before anything is asked; with --update
what was there is kept aside; an arm that leaves the recipe and comes back is not trained again.
"""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from helpers.cli import LADDER, small

from deltalearn.errors import UserError
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.recipe import load_recipe
from deltalearn.util.files import file_digest

QUESTIONS = {"source": "questions.jsonl", "task_column": "task", "max_tokens": 8, "limit": 4}
ARM = "arms/delta/seed-0/final/model.safetensors"
RESULTS = "scores/arms/delta/seed-0/results.json"


def run(folder: Path, *changes: str, update: bool = False, until: str = "report") -> list[str]:
    """Run the recipe of the folder; what was said."""
    said: list[str] = []
    loaded = load_recipe(folder / "small.yaml", changes)
    with chdir(folder):
        run_recipe(loaded, RunOptions(Path("run"), update, until), say=said.append)
    return said


def worked(said: list[str]) -> list[str]:
    return [line.split()[0] for line in said if " s  " in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run whose models, prompts, questions and pairs are files of its own."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("m", "s", "xs"):
        shutil.copytree(LADDER / name, folder / name)
    shutil.copy(LADDER / "eval.jsonl", folder / "questions.jsonl")
    small(
        folder,
        student={"path": "./m"},
        models={name: {"path": f"./{name}"} for name in ("s", "xs")},
        prompts={"source": "prompts.jsonl"},
        evaluate={"questions": {"lab": QUESTIONS}},
    )
    run(folder)
    return folder


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A copy of it, finished as well: its paths are relative."""
    return shutil.copytree(finished, tmp_path / "again")


def more_prompts(folder: Path) -> None:
    with (folder / "prompts.jsonl").open("a") as file:
        for text in ("abe", "cdj", "fgh", "ajc", "hid", "bgf"):
            file.write(json.dumps({"prompt": f"swap {text}"}) + "\n")


def fewer_questions(folder: Path) -> None:
    file = folder / "questions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:50]))


def another_model(folder: Path) -> None:
    shutil.copy(folder / "xs" / "config.json", folder / "s" / "config.json")
    shutil.copy(folder / "xs" / "model.safetensors", folder / "s" / "model.safetensors")


def another_student(folder: Path) -> None:
    file = folder / "m" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "remark": "another"}))


CHANGES = [
    (more_prompts, "prompts.source (content)"),
    (fewer_questions, "evaluate.questions.lab (content)"),
    (another_model, "models.s (content)"),
    (another_student, "student (content)"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_other_content_behind_the_same_path_is_refused_before_anything_works(again, change, named):
    everything = {p: p.read_bytes() for p in (again / "run").rglob("*") if p.is_file()}
    change(again)
    with pytest.raises(UserError) as error:
        run(again)
    assert f"holds a run on other {named}. Pass --update" in str(error.value)
    assert {p: p.read_bytes() for p in everything} == everything


def test_what_update_replaces_is_kept_aside_and_said(again):
    weights = file_digest(again / "run" / ARM)
    results = (again / "run" / RESULTS).read_bytes()
    more_prompts(again)
    said = run(again, update=True)
    kept = again / "run" / "replaced" / "1"
    assert file_digest(kept / ARM) == weights and file_digest(again / "run" / ARM) != weights
    assert (kept / RESULTS).read_bytes() == results != (again / "run" / RESULTS).read_bytes()
    assert (kept / "arms/delta/seed-0/log.jsonl").is_file()
    assert (kept / "scores/arms/delta/seed-0/items").is_dir()
    assert not (kept / "scores/models").exists(), "the same models have the same scores"
    line = "tune/delta/seed-0: again on other pairs (content); what was there: run/replaced/1"
    assert line in said, said
    assert run(again) == [], "done, and no other content any more"
    run(again, "tune.steps=1", update=True, until="tune")
    assert (again / "run/replaced/2" / ARM).is_file()


def test_a_run_that_was_stopped_under_update_still_gives_nothing_up(again):
    """The new content is known by then; the arm of the old is there still."""
    more_prompts(again)
    weights = file_digest(again / "run" / ARM)
    run(again, update=True, until="pairs")
    with pytest.raises(UserError, match=r"holds a run on other pairs \(content\)"):
        run(again)
    assert file_digest(again / "run" / ARM) == weights


def test_an_arm_that_comes_back_is_not_trained_again(again):
    more = "arms.other={chosen: s, rejected: xs, tune: {lr: 0.001}}"
    assert "tune/other/seed-0" in worked(run(again, more, update=True))
    said = run(again, update=True)
    assert any("other/seed-0: of an arm or seed that the recipe no longer has" in s for s in said)
    assert "other" not in json.loads((again / "run/summary.json").read_text())["arms"]
    assert worked(run(again, more, update=True)) == ["report"]
    assert not (again / "run/replaced").exists()


def test_a_first_stage_that_failed_holds_nothing(tmp_path):
    """The prompts are mended, by another file and by other content: no --update is asked for."""
    small(tmp_path)
    good = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no usable prompt"):
        run(tmp_path, until="pairs")
    (tmp_path / "prompts.jsonl").write_text(good)
    run(tmp_path, until="prompts")
    (tmp_path / "prompts.jsonl").write_text(good + '{"prompt": "dup ab"}\n')
    assert worked(run(tmp_path, "prompts.limit=4", until="prompts")) == ["prompts", "overlap"]
