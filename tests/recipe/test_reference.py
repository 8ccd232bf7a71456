"""Protects the page of all keys: it is what the code takes, and each key says what it does."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from deltalearn.cli import app
from deltalearn.errors import UserError
from deltalearn.recipe.keys import sections
from deltalearn.recipe.reference import reference, section_names

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_what_the_code_takes():
    assert PAGE.read_text() == reference(), "deltalearn recipe > docs/recipe.md"
    result = CliRunner().invoke(app, ["recipe"])
    assert result.exit_code == 0 and result.output == reference()


def test_every_key_is_there_with_what_it_does():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    expected = [name for key, spec in sections() for name in spec.model_fields if key]
    expected += [n for n in next(sections())[1].model_fields if n not in section_names()]
    assert sorted(row.split("`")[1] for row in rows) == sorted(expected)
    for row in rows:
        assert row.rstrip(" |").endswith((".", ")")), f"{row}: a sentence about it is missing"


def test_one_section_alone():
    text = CliRunner().invoke(app, ["recipe", "tune"]).output
    assert text.startswith("## tune\n") and "### tune.lora" in text and "## student" not in text
    wrong = CliRunner().invoke(app, ["recipe", "evalute"])
    assert isinstance(wrong.exception, UserError)
    assert "did you mean 'evaluate'?" in str(wrong.exception)
