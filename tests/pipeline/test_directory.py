"""Protects run directories: one command at a time, and a start that failed binds to nothing.

The second command is told who is there; a manifest of an earlier version is read; a mistake that
is mended does not look like another run.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails, small
from helpers.generation import prompts_file

from deltalearn.errors import UserError
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.lock import Hold
from deltalearn.pipeline.manifest import Manifest
from deltalearn.pipeline.stage import Stage
from deltalearn.recipe.load import load_recipe


@pytest.fixture
def loaded(tmp_path):
    return load_recipe(small(tmp_path))


def test_the_second_is_told_who_holds_the_directory(tmp_path, loaded):
    out = tmp_path / "run"
    with RunDirectory(out, loaded):
        with pytest.raises(UserError, match="another deltalearn process is running here") as error:
            RunDirectory(out, loaded)
        text = str(error.value)
        assert f"(process {os.getpid()} on {platform.node()} since 2" in text
        assert re.search(r"since [0-9T:Z-]+: deltalearn\b", text), text
        result = deltalearn("run", tmp_path / "small.yaml", "--out", out)
        fails(result, f"process {os.getpid()} on")
    assert (out / ".lock").read_text() == "", "nobody is here any more"


def test_a_folder_that_was_made_and_left_empty_is_removed(tmp_path):
    with Hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert not (tmp_path / "a").exists()
    with Hold(tmp_path / "c"):
        (tmp_path / "c" / "file").touch()
    assert (tmp_path / "c" / "file").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        {"prompts": {"source": "./no-such-file.jsonl"}},
        {"student": {"path": "./nowhere"}},
        {"models": {"s": {"path": "./nowhere"}, "xs": {"path": "./nowhere"}}},
        {"device": "mps"},
    ],
    ids=["prompts", "student", "models", "device"],
)
def test_a_first_start_that_fails_leaves_nothing_in_the_way(tmp_path, mistake):
    out = tmp_path / "run"
    result = deltalearn("run", small(tmp_path, **mistake), "--out", out, "--until", "generate")
    fails(result)
    if "device" not in mistake:
        assert not out.exists()
    result = deltalearn("run", small(tmp_path), "--out", out, "--until", "prompts")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_leaves_no_settings_behind(tmp_path):
    """Another url or model is no other run while there is no answer."""
    options = ["--prompts", prompts_file(tmp_path, 2), "--out", tmp_path / "out"]
    nowhere = ["--set", "models.a.server.patience=0.1", "--url", "http://127.0.0.1:9/v1"]
    for model in ("a=first", "a=second"):
        result = deltalearn("generate", "--model", model, *options, *nowhere)
        fails(result)
        assert "other settings" not in result.stderr


def stage(inputs: dict, work, **more) -> Stage:
    return Stage("tune", inputs, ("final",), work, scratch=("final",), costly=("final",), **more)


def test_what_cost_is_kept_until_its_successor_is_known_to_be_possible(tmp_path, loaded):
    def leave(text: str):
        def work() -> dict:
            (tmp_path / "run" / "final").write_text(text)
            return {}

        return work

    def impossible() -> None:
        raise UserError("no")

    with RunDirectory(tmp_path / "run", loaded) as run:
        assert run.run(stage({"pairs": "a", "seed": 0}, leave("first")))
        assert not run.run(stage({"pairs": "a", "seed": 0}, impossible))
        changed = {"pairs": "b", "seed": 0}
        with pytest.raises(UserError, match="a run on other the pairs"):
            run.run(stage(changed, leave("x"), called={"pairs": "the pairs"}), over=False)
        with pytest.raises(UserError, match="no"):
            run.run(stage(changed, leave("x"), prepare=impossible))
        assert (tmp_path / "run" / "final").read_text() == "first"
        assert not run.run(stage({"pairs": "a", "seed": 0}, impossible)), "still done"
        assert run.run(stage(changed, leave("second")))
    assert (tmp_path / "run" / "final").read_text() == "second"


def test_a_manifest_of_an_earlier_version_is_read(tmp_path, loaded):
    with RunDirectory(tmp_path / "run", loaded) as run:
        run.run(Stage("prompts", {"a": 1}, (), lambda: {"prompts": 3}))
    file = tmp_path / "run" / "run.json"
    values = json.loads(file.read_text())
    del values["stages"]["prompts"]["inputs"]
    values |= {"pairs": {"source": "x", "digest": "y"}, "dev": None}
    values["models"]["student"] = {
        "path": "org/name",
        "fingerprint": "hub:org/name@1",
        "commit": "1",
    }
    values["answers"]["generate/s"] = {"mark": "m", "fingerprint": "f"}
    file.write_text(json.dumps(values))
    manifest = Manifest.read(file)
    assert manifest.stages["prompts"].counts == {"prompts": 3}
    assert manifest.pinned("student", "org/name") == "1"
    assert manifest.pinned("student", "org/other") is None
    assert manifest.answers["generate/s"].mark == "m"
    with RunDirectory(tmp_path / "run", loaded) as run:
        assert run.is_done(Stage("prompts", {"a": 1}, (), dict))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 7}'])
def test_what_is_no_manifest_is_refused(tmp_path, loaded, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run.json: (not a manifest|made by another version)"):
        RunDirectory(tmp_path / "run", loaded)
    assert Path(tmp_path / "run" / "run.json").read_text() == text
