"""Protects options that are made from the recipe's fields: none lost, each with its field's words.

An option that drifts from its field would promise a default or a choice that nothing keeps.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from typer.testing import CliRunner

from deltalearn.cli import answers, app, evaluation, scores, tune
from deltalearn.recipe.keys import field_at
from deltalearn.theory.options import Options

RUNNER = CliRunner()
OWN = {  # options that are no field of a recipe
    "tune": {
        "recipe",
        "template",
        "out",
        "seed",
        "set",
        "reference",
        "update",
        "preview",
        "dry-run",
        "tflops",
        "against",
        "data-dir",
    },
    "generate": {"model", "template", "out", "set", "retry-errors", "update", "dry-run"},
    "evaluate": {
        "recipe",
        "template",
        "out",
        "name",
        "concurrency",
        "backend-option",
        "outputs",
        "annotations",
        "set",
        "update",
    },
    "pairs": {"chosen", "rejected", "out", "settings"},
    "run": {"set", "check", "dry-run"},
    "ladder": set(),
    "theory": set(),
    "compare": {"recipe", "json", "plot", "plan", "discordance", "sd", "effect"},
}
FIELDS = {
    "tune": (
        "student pairs split prompt-column chosen-column rejected-column ignore-column "
        "chat-template limit method lr beta "
        "batch-size steps epochs max-length truncation token-budget layout attention "
        "gradient-checkpointing compile lora shard eval-pairs tracker device dtype"
    ),
    "generate": (
        "prompts split prompt-column ignore-column limit url key-env concurrency engine "
        "temperature top-p max-tokens samples seed "
        "system device dtype"
    ),
    "evaluate": (
        "benchmark split limit data-dir include-path backend url key-env tokenizer device dtype "
        "batch-size context reasoning-tokens judge judge-model judge-url judge-key-env "
        "judge-text-only allow-code unsafe"
    ),
    "run": "out update until retry-errors parallel tokens-per-second tflops devices",
    "theory": (
        "student chosen rejected norm errors dimension trials steps batch rate temperature loss "
        "beta inputs freedom correlation seed out update no-figures json"
    ),
    "ladder": (
        "layers-out drop bits group-size noise seed text answer-column choose-on limit out "
        "device dtype"
    ),
    "pairs": "truncated reasoning max-length-difference",
    "compare": ("also-a also-b benchmark mmlu allow-different-settings clusters draws seed"),
}
COMMANDS = {
    "tune": tune,
    "generate": answers.generate,
    "pairs": answers.pairs,
    "evaluate": evaluation.evaluate,
    "compare": scores.compare,
}


def shown(command: str) -> dict[str, str]:
    """The help of each option of a command, by its name, on one line."""
    result = RUNNER.invoke(app, [command, "--help"], terminal_width=400)
    assert result.exit_code == 0, result.output
    text = result.output.partition("Options:\n")[2]
    parts = re.split(r"^  (?:-h, )?--", text, flags=re.MULTILINE)[1:]
    return {re.match(r"[\w-]+", part)[0]: " ".join(part.split()) for part in parts}


@pytest.mark.parametrize("command", OWN)
def test_no_option_is_lost(command):
    assert set(shown(command)) == OWN[command] | set(FIELDS[command].split()) | {"help"}


@pytest.mark.parametrize(
    ("command", "key", "flag"),
    [
        (name, key, flag)
        for name, c in COMMANDS.items()
        for key, flag in c.__wrapped__.flags.items()
    ],
)
def test_an_option_says_what_its_field_says(command, key, flag):
    field, text = field_at(key), shown(command)[re.match(r"--([\w-]+)", flag)[1]]
    assert field.description and field.description in text
    if get_origin(field.annotation) is Literal:
        assert f"[{'|'.join(get_args(field.annotation))}]" in text
    plain = isinstance(field.default, (int, float, str)) and not isinstance(field.default, bool)
    if plain and " " not in flag:
        default = re.search(r"\[default: (.*)\]", text)[1]
        assert type(field.default)(default) == field.default


def test_options_of_a_dataclass_say_what_its_fields_say(monkeypatch):
    text = shown("run")
    assert "Models at work at a time" in text["parallel"]
    assert text["parallel"].endswith("[default: 1]")
    assert "[prompts|generate|pairs|tune|evaluate|report]" in text["until"]
    assert "A,B,C" in shown("theory")["errors"]
    got = []
    monkeypatch.setattr("deltalearn.theory.run.run_theory", got.append)
    result = RUNNER.invoke(app, ["theory", "--json", "--loss", "dpo", "--out", "x", "--norm", "2"])
    assert result.exit_code == 0, result.output
    assert got == [Options(as_json=True, loss="dpo", out=Path("x"), norm=2.0)]


def test_what_is_given_arrives_at_its_key(monkeypatch):
    got = {}

    def load(place, overrides, *, command, options):
        got.update({key: value for key, value in options.items() if value is not None})
        raise SystemExit(0)

    monkeypatch.setattr("deltalearn.recipe.load_recipe", load)
    arguments = ["--student", "M", "--pairs", "P", "--lr", "1e-3", "--steps", "7", "--no-shard"]
    RUNNER.invoke(app, ["tune", *arguments, "--lora", "8", "--seed", "3", "--layout", "packed"])
    assert got == {
        "student.path": "M", "pairs.source": "P", "tune.lr": 1e-3, "tune.steps": 7,
        "tune.shard": False, "tune.lora.r": 8, "seeds": [3], "tune.layout": "packed",
    }  # fmt: skip


def test_the_schema_is_not_imported_for_the_list_of_commands():
    code = (
        "import sys; from deltalearn.cli import app; from typer.testing import CliRunner;"
        "assert 'generate' in CliRunner().invoke(app, ['--help']).output;"
        "print('pydantic' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stdout + result.stderr
