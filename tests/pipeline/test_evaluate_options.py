"""Protects what `deltalearn evaluate` refuses before anything runs: idle options and wrong ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.cli import deltalearn, fails

pytest.importorskip("lm_eval")

from helpers.served_suite import Suite

from deltalearn.cli import app
from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BackendOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge_model": "x"}, "--judge-model has no effect without --judge;"),
        ({"judge_url": "x"}, "--judge-url has no effect without --judge;"),
        ({"judge_text_only": True}, "--judge-text-only has no effect without --judge;"),
        ({"judge_key_env": "K"}, "--judge-key-env has no effect without --judge"),
        ({"tokenizer": "x"}, "--tokenizer has no effect without --url"),
        ({"key_env": "x"}, "--key-env has no effect without --url"),
        ({"concurrency": 3}, "--concurrency has no effect without --url or --judge-url"),
        ({"unsafe": True}, "--unsafe has no effect without --allow-code"),
        ({"judge": "x", "annotations": Path("x")}, "beside --annotations"),
        ({"judge": "x", "benchmark": ["ifeval"]}, "without --benchmark alpaca_eval"),
        ({"judge": "nobody", "benchmark": ["tulu3"]}, "nobody"),  # AlpacaEval is among the eleven
        ({"annotations": Path("x"), "benchmark": ["ifeval"]}, "--annotations has no effect"),
        ({"url": "http://x", "backend": "vllm"}, "--backend vllm has no effect beside --url"),
        ({"url": "http://x", "device": "cpu"}, "--device has no effect beside --url"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, options, message):
    arguments = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        flag = f"--{name.replace('_', '-')}"
        arguments += [flag] if value is True else [s for v in values for s in (flag, str(v))]
    with pytest.raises(UserError, match=message):
        app(["evaluate", "m", "--out", str(tmp_path / "m"), *arguments], standalone_mode=False)
    assert not any(tmp_path.iterdir())


def test_the_command_line_says_it_in_a_line(tmp_path):
    fails(deltalearn("evaluate", "m", "--unsafe", cwd=tmp_path), "--allow-code")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "foo"}, "--device foo"),
        ({"dtype": "foo"}, "--dtype foo"),
        ({"options": {"foo": 1}}, "--backend-option foo"),
        ({"options": {"batch_size": 2}}, "batch_size"),
        ({"options": {"gguf_file": "m.gguf"}}, "the model itself is named so"),
    ],
)
def test_a_model_that_does_not_load_is_no_traceback(tmp_path, tiny_model, options, message):
    suite = Suite(tmp_path)
    backend = BackendOptions(
        kind="hf", model=str(tiny_model), **{"device": "cpu", "dtype": "float32", **options}
    )
    with pytest.raises(UserError, match=message):
        suite.run(None, "ifeval", backend=backend)
    assert suite.test_set_log == []


def test_a_model_without_a_chat_template_is_told_so(tmp_path, tiny_model):
    place = tmp_path / "plain"
    shutil.copytree(tiny_model, place)
    for file in place.glob("chat_template*"):
        file.unlink()
    config = place / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    suite = Suite(tmp_path)
    backend = BackendOptions(kind="hf", model=str(place), device="cpu", dtype="float32")
    with pytest.raises(UserError, match="has no chat template"):
        suite.run(None, "ifeval", backend=backend)
    assert suite.test_set_log == []


@pytest.mark.slow
def test_a_run_of_nothing_has_an_exit_code(tmp_path, tiny_model):
    (tmp_path / "data").mkdir()
    result = deltalearn(
        "evaluate", tiny_model, "--data-dir", tmp_path / "data", "--benchmark", "gsm8k",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (3, "")
    assert "not run" in result.stdout and "gsm8k" in result.stdout
