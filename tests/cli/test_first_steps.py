"""Protects what a newcomer meets first: help that is whole and in order, no answer lost unasked.

The rest is in the tests of the commands.
"""

from __future__ import annotations

import re

import pytest
from helpers.cli import small
from helpers.stores import answer, failure, put, requests
from typer.testing import CliRunner

from deltalearn.cli import app
from deltalearn.errors import UserError
from deltalearn.responses.maintenance import number_named
from deltalearn.responses.store import ResponseStore

RUNNER = CliRunner()
JOURNEY = "run generate pairs tune evaluate compare report recipe responses theory ladder lab"


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in JOURNEY.split()), ["responses", "list"], ["lab", "pretrain"]],
)
def test_a_short_h_is_help_for_every_command(command):
    short, long = (RUNNER.invoke(app, [*command, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output
    assert short.output.startswith("Usage:") and "-h, --help" in short.output


def test_commands_stand_in_the_order_of_the_journey_and_are_whole():
    listed = RUNNER.invoke(app, ["--help"]).output.partition("Commands:\n")[2]
    assert re.findall(r"^  (\w+)", listed, flags=re.MULTILINE) == JOURNEY.split()
    for command in ([], ["responses"], ["lab"]):
        text = RUNNER.invoke(app, [*command, "--help"]).output
        assert "..." not in text.partition("Options:")[2]


# -- a store that several models of one name are in ----------------------------------------------

FIRST, SECOND = "a1" * 32, "a2" * 32


@pytest.fixture
def store(tmp_path):
    """Two versions of a model, both called larger, the same settings."""
    path = tmp_path / "responses.sqlite"
    for identity in (FIRST, SECOND):
        put(path, answer(requests(identity, "q")[0], "x"), **{identity: "larger"})
    return path


def responses(*arguments, **options):
    return RUNNER.invoke(app, ["responses", *map(str, arguments)], **options)


def test_list_shows_what_forget_takes(store):
    listed = responses("list", store).output
    shown = re.findall(r"larger +(\w+)", listed)
    assert shown == [FIRST[:12], SECOND[:12]]
    assert isinstance(responses("forget", store, "larger", "--yes").exception, UserError)
    result = responses("forget", store, shown[1], "--yes")
    assert result.exit_code == 0 and f"1 answers of {shown[1]} deleted" in result.output
    assert re.findall(r"larger +(\w+)", responses("list", store).output) == shown[:1]


def test_too_short_a_beginning_of_an_identity_is_nobody(store):
    with pytest.raises(UserError, match="no model 'a1'"), ResponseStore(store) as opened:
        number_named(opened, "a1")


def test_forgetting_asks_first(store, monkeypatch):
    refused = responses("forget", store, FIRST)
    assert isinstance(refused.exception, UserError), "nobody to ask"
    assert "1 answers" in str(refused.exception) and "--yes" in str(refused.exception)
    monkeypatch.setattr("deltalearn.cli.answers.is_interactive", lambda: True)
    said = responses("forget", store, FIRST, input="n\n")
    assert "Delete 1 answers" in said.output and "nothing deleted" in said.output
    assert responses("forget", store, FIRST, input="\n").exit_code == 0, "no is the default"
    with ResponseStore(store) as opened:
        assert number_named(opened, FIRST) == 1
    assert "deleted" in responses("forget", store, FIRST, input="y\n").output
    with pytest.raises(UserError), ResponseStore(store) as opened:
        number_named(opened, FIRST)


def test_a_list_of_nothing_says_so(tmp_path):
    path = tmp_path / "responses.sqlite"
    put(path)
    assert responses("list", path).output == "no answers yet\n"
    assert responses("errors", path).output == "no errors\n"
    put(path, failure(requests("M", "q")[0], "refused"), M="m")
    assert "refused" in responses("errors", path).output


def test_a_wrong_name_is_told_the_nearest_wherever_it_is_given(store, tmp_path):
    """Of a value in a recipe: tests/recipe/test_faults.py."""
    recipe = small(tmp_path)
    for command, nearest in (
        (["run", recipe, "--until", "evalute"], "evaluate"),
        (["run", recipe, "--until", "Tune"], "tune"),
        (["responses", "forget", store, "largr", "--yes"], "larger"),
        (["responses", "export", store, tmp_path / "x.jsonl", "--model", "Larger"], "larger"),
        (["recipe", "promps"], "prompts"),
    ):
        result = RUNNER.invoke(app, [str(part) for part in command])
        assert isinstance(result.exception, UserError), result.output
        assert str(result.exception).endswith(f"did you mean {nearest!r}?"), result.exception
