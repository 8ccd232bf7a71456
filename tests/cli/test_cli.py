"""Protects what a person meets at the command line: speed, clear errors, exit code 2, no losses.

Every bad input here gets a message that names the cause, no traceback, and leaves finished work
where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import LADDER, deltalearn, fails, small


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of the small recipe, beside its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    result = deltalearn("run", small(folder), "--out", folder / "run")
    assert result.returncode == 0, result.stderr
    return folder


class TestStart:
    def test_help_imports_nothing_heavy(self):
        code = (
            "import sys; from deltalearn.cli import app; from typer.testing import CliRunner;"
            "commands = 'run', 'generate', 'pairs', 'tune', 'evaluate', 'compare';"
            "found = [CliRunner().invoke(app, [name, '--help']).exit_code for name in commands];"
            "assert not any(found);"
            "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow', 'numpy'};"
            "heavy |= {'yaml'};"
            "print(sorted(heavy & set(sys.modules)))"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.stdout.strip() == "[]", result.stdout + result.stderr

    def test_version(self):
        assert deltalearn("--version").stdout.startswith("deltalearn 0.")

    def test_no_arguments_show_help(self):
        result = deltalearn()
        assert "Usage" in result.stdout + result.stderr


class TestBadInput:
    def test_missing_recipe(self, tmp_path):
        fails(deltalearn("run", tmp_path / "none.yaml"), "no such recipe", "lab")

    def test_wrong_key(self, tmp_path):
        recipe = small(tmp_path, tune={"learning_rate": 1e-4})
        fails(deltalearn("run", recipe), "small.yaml", "tune.learning_rate", "unknown key")

    def test_wrong_override(self, tmp_path):
        result = deltalearn("run", small(tmp_path), "--set", "tune.bata=3")
        fails(result, "tune.bata", "did you mean 'beta'?")

    @pytest.mark.slow
    def test_missing_prompts(self, tmp_path):
        recipe = small(tmp_path, prompts={"source": str(tmp_path / "no.jsonl")})
        fails(deltalearn("run", recipe, "--out", tmp_path / "run"), "no.jsonl", "not on this disk")

    @pytest.mark.slow
    def test_empty_prompts(self, tmp_path):
        recipe = small(tmp_path)
        (tmp_path / "prompts.jsonl").write_text("")
        result = deltalearn("run", recipe, "--out", tmp_path / "run")
        fails(result, "prompts.jsonl", "no usable prompt")

    def test_malformed_line_is_rejected_named_and_kept(self, tmp_path):
        recipe = small(tmp_path)
        with (tmp_path / "prompts.jsonl").open("a") as lines:
            lines.write('{"prompt": "rev ab\n')
        result = deltalearn("run", recipe, "--out", tmp_path / "run", "--until", "prompts")
        assert result.returncode == 0
        assert "prompts.jsonl:16: not JSON" in result.stdout
        rejects = (tmp_path / "run" / "prompts.rejects.jsonl").read_text().splitlines()
        assert json.loads(rejects[0])["row"] == '{"prompt": "rev ab'
        assert len((tmp_path / "run" / "prompts.jsonl").read_text().splitlines()) == 15

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("remove", "text"),
        [
            (["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
            (["chat_template.jinja"], "no chat template"),
            (["model.safetensors"], "no *.safetensors weights"),
            (["config.json"], "no config.json"),
        ],
    )
    def test_incomplete_model_directory(self, tmp_path, remove, text):
        shutil.copytree(LADDER / "s", tmp_path / "s")
        for name in remove:
            (tmp_path / "s" / name).unlink()
        models = {
            "s": {"path": str(tmp_path / "s")},
            "xs": {"path": "package://deltalearn.lab/ladder/xs"},
        }
        result = deltalearn("run", small(tmp_path, models=models), "--out", tmp_path / "run")
        fails(result, text, str(tmp_path / "s"))

    def test_missing_model(self, tmp_path):
        recipe = small(tmp_path, student={"path": "./nowhere"})
        fails(deltalearn("run", recipe, "--out", tmp_path / "run"), "nowhere", "no such model")

    def test_hub_model_without_a_network(self, tmp_path):
        recipe = small(tmp_path, student={"path": "nobody/no-such-model"})
        result = deltalearn("run", recipe, "--out", tmp_path / "run", HF_HUB_OFFLINE="1")
        fails(result, "nobody/no-such-model", "Hugging Face hub")

    def test_unknown_stage(self, tmp_path):
        fails(deltalearn("run", small(tmp_path), "--until", "train"), "no such stage", "tune")

    @pytest.mark.slow
    def test_prompts_too_few_for_a_batch(self, tmp_path):
        recipe = small(tmp_path, tune={"lr": 1e-4})
        result = deltalearn("run", recipe, "--out", tmp_path / "run")
        fails(result, "do not fill one batch of 32", "tune.batch_size")
        assert not (tmp_path / "run" / "responses.sqlite").exists(), "before anybody is asked"


class TestOutputDirectory:
    def test_second_run_does_nothing(self, finished):
        before = {p: p.stat().st_mtime_ns for p in (finished / "run").rglob("*") if p.is_file()}
        result = deltalearn("run", finished / "small.yaml", "--out", finished / "run")
        assert result.returncode == 0
        assert "nothing to do" in result.stdout
        after = {p: p.stat().st_mtime_ns for p in (finished / "run").rglob("*") if p.is_file()}
        assert {p: t for p, t in before.items() if p.name != ".lock"} == {
            p: t for p, t in after.items() if p.name != ".lock"
        }

    def test_second_run_imports_nothing_heavy(self, finished):
        """What keeps it under a second: torch alone takes three to import."""
        code = (
            "import sys; from pathlib import Path; from deltalearn.pipeline.run import run_recipe;"
            "from deltalearn.recipe import load_recipe;"
            "from deltalearn.pipeline.run_options import RunOptions;"
            "d = run_recipe(load_recipe(sys.argv[1]), RunOptions(out=Path(sys.argv[2])));"
            "assert not d.done_now;"
            "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
        )
        arguments = [str(finished / "small.yaml"), str(finished / "run")]
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True
        )
        assert result.stdout.strip() == "[]", result.stdout + result.stderr

    def test_of_another_recipe(self, finished):
        result = deltalearn(
            "run", finished / "small.yaml", "--out", finished / "run", "--set", "name=other"
        )
        fails(result, "another recipe", "'small'", "'other'")

    def test_of_other_settings(self, finished):
        result = deltalearn(
            "run", finished / "small.yaml", "--out", finished / "run", "--set", "tune.steps=3"
        )
        fails(result, "tune.steps", "--update")

    def test_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("do not touch")
        fails(deltalearn("run", small(tmp_path), "--out", tmp_path), "not a run of deltalearn")
        assert (tmp_path / "thesis.tex").read_text() == "do not touch"

    @pytest.mark.slow
    def test_update_redoes_only_what_depends_on_the_change(self, finished, tmp_path):
        out = tmp_path / "run"
        shutil.copytree(finished / "run", out)
        result = deltalearn(
            "run", finished / "small.yaml", "--out", out, "--set", "tune.steps=3", "--update"
        )
        assert result.returncode == 0, result.stderr
        stage = re.compile(r"^(\S+) +[\d.]+ s ")
        worked = [m[1] for line in result.stdout.splitlines() if (m := stage.match(line))]
        assert worked == ["tune/delta/seed-0", "evaluate/arms/delta/seed-0", "report"]
        assert len((out / "arms/delta/seed-0/log.jsonl").read_text().splitlines()) == 3

    def test_resolved_recipe_runs_again(self, finished):
        result = deltalearn("run", finished / "run" / "recipe.yaml", "--out", finished / "run")
        assert "nothing to do" in result.stdout, result.stderr

    @pytest.mark.slow
    def test_report_of_an_unfinished_run(self, tmp_path):
        out = tmp_path / "run"
        deltalearn("run", small(tmp_path), "--out", out, "--until", "prompts")
        fails(deltalearn("report", out), "not there yet", "evaluate stage")

    def test_two_processes_in_one_directory(self, finished):
        from filelock import FileLock

        with FileLock(finished / "run" / ".lock"):
            result = deltalearn("run", finished / "small.yaml", "--out", finished / "run")
        fails(result, "another deltalearn process")


@pytest.mark.slow
def test_interrupting_says_how_to_resume(tmp_path):
    """Ctrl-C in the middle of work: exit code 130, one message, no traceback."""
    command = [sys.executable, "-m", "deltalearn", "run", small(tmp_path), "--out", tmp_path / "r"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert any(line.startswith("prompts") for line in child.stdout)  # imports of generate follow
    # Some libraries swallow a Ctrl-C while they are imported; a person would press it again.
    while child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=2)
    said = child.stderr.read()
    assert child.returncode == 130
    assert "run the same command again to resume" in said
    assert "Traceback" not in said


class TestFullDisk:
    """A file-size limit stands in for a full disk: the same system call fails at the same place."""

    @pytest.mark.slow
    def test_while_generating(self, tmp_path):
        recipe = small(tmp_path)
        texts = itertools.product("abcdefghij", "abcdefghij", "abcdefgh")
        prompts = [{"prompt": f"rev {''.join(letters)}d"} for letters in texts]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
        out, settings = tmp_path / "run", ["--set", "generate.token_budget=1200"]
        until = ["--until", "pairs"]
        full = deltalearn("run", recipe, "--out", out, *settings, *until, limit="-f 150")
        fails(full, "disk is full", "run the same command again")
        kept = sqlite3.connect(out / "responses.sqlite").execute("SELECT key FROM responses")
        kept = {key for (key,) in kept}
        again = deltalearn("run", recipe, "--out", out, *settings, *until)
        assert again.returncode == 0, again.stderr
        manifest = json.loads((out / "run.json").read_text())
        cached = sum(manifest["stages"][f"generate/{m}"]["counts"]["cached"] for m in ("s", "xs"))
        assert cached == len(kept) > 0
        whole = deltalearn("run", recipe, "--out", tmp_path / "whole", *settings, *until)
        assert whole.returncode == 0
        name = "pairs/s_over_xs.parquet"
        assert pq.read_table(out / name).equals(pq.read_table(tmp_path / "whole" / name))
