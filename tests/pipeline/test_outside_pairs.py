"""Protects arms that train on pairs from outside, beside arms on pairs of answers.

Their pairs are read where they are, by the columns that the arm names, and a student is trained
again only on other pairs, and only if that is wanted.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltalearn.errors import UserError
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_estimate import estimate_run
from deltalearn.pipeline.run_options import Rates, RunOptions
from deltalearn.recipe import load_recipe
from tests.helpers.cli import small

ARMS = {"base": {}, "delta": {"chosen": "s", "rejected": "xs"}}
COLUMNS = {"chosen_column": "good", "rejected_column": "bad"}


@pytest.fixture
def strong(write_lines) -> Path:
    """Pairs of a file with columns of its own; the last two rows are beyond the arm's limit."""
    words = ("abcd", "bdce", "ghij", "efgh", "hgfe", "dcba")
    rows = [{"prompt": f"rev {w}", "good": w[::-1], "bad": w} for w in words]
    return write_lines(rows, "strong.jsonl")


def run(recipe: Path, out: Path, *overrides: str, **options) -> tuple[dict, list[str]]:
    """Stages of the manifest, and the lines that were said."""
    said: list[str] = []
    run_recipe(load_recipe(recipe, overrides), RunOptions(out=out, **options), say=said.append)
    return json.loads((out / "run.json").read_text())["stages"], said


def outside(source: Path) -> dict:
    return {"pairs": {"source": str(source), "limit": 4, **COLUMNS}}


@pytest.mark.slow
def test_an_arm_on_outside_pairs_stands_beside_one_on_answers(tmp_path, strong):
    recipe = small(tmp_path, arms={**ARMS, "strong": outside(strong)})
    stages, _ = run(recipe, tmp_path / "run")
    counts = stages["tune/strong/seed-0"]["counts"]
    assert (counts["pairs"], counts["steps"]) == (4, 2)
    assert [name for name in stages if name.startswith("pairs/")] == ["pairs/s_over_xs"]
    scores = {name for name in stages if name.startswith("evaluate/arms/")}
    assert scores == {"evaluate/arms/delta/seed-0", "evaluate/arms/strong/seed-0"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"base", "delta", "strong"} <= set(summary["arms"])

    done, said = run(recipe, tmp_path / "run")
    assert (done, said) == (stages, [])
    strong.write_text("".join(strong.read_text().splitlines(keepends=True)[::-1]))
    with pytest.raises(UserError, match=r"other arms.strong.pairs \(content\)"):
        run(recipe, tmp_path / "run")
    changed, _ = run(recipe, tmp_path / "run", update=True)
    again = {name for name in stages if changed[name] != stages[name]}
    assert again == {"overlap", "tune/strong/seed-0", "evaluate/arms/strong/seed-0", "report"}


def test_a_run_on_outside_pairs_alone_asks_no_model(tmp_path, strong):
    recipe = small(
        tmp_path, arms={"base": {}, "strong": outside(strong)}, models={}, prompts=None,
        evaluate=None,
    )  # fmt: skip
    nothing = "nothing is scored: the recipe has no section evaluate"
    assert nothing in estimate_run(load_recipe(recipe), RunOptions(tmp_path / "run"), Rates())
    stages, said = run(recipe, tmp_path / "run")
    assert said.count(nothing) == 1
    assert list(stages) == ["tune/strong/seed-0", "report"]
    assert "Tuned, not scored" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "responses.sqlite").exists()
