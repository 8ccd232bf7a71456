"""Protects the documentation from drifting: its recipe loads, its task table is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from deltalearn.lab.tasks import TASKS
from deltalearn.recipe import GENERATE, Recipe, load_recipe
from deltalearn.recipe.load import read_values

ROOT = Path(__file__).parents[2]
TOP = {"src", "tests", "docs", "benchmarks", "recipes"}  # folders of the repository


def test_the_recipe_of_the_readme_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "readme.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "readme.yaml").recipe
    assert recipe.tune_of("delta").effective_beta == 5
    assert recipe.tune_of("sft").method == "sft"


def test_the_commands_of_the_readme_exist():
    """Every `deltalearn X` that the README shows is a command."""
    from typer.main import get_command

    from deltalearn.cli import app

    commands = get_command(app).commands
    shown = re.findall(r"^    deltalearn (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown
    assert set(shown) <= set(commands)


def test_the_task_table_of_the_lab():
    rows = re.findall(
        r"^\| (\w+) \| (.*) \| (.*) \| `\1 (\w+)` \| `(\w+)` \| `(\w+)` \|$",
        (ROOT / "docs" / "lab.md").read_text(),
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == list(TASKS)
    for task, about, mistake, text, expert, novice in rows:
        assert (TASKS[task].about, TASKS[task].mistake) == (about, mistake)
        assert TASKS[task].expert(text) == expert
        assert TASKS[task].novice(text) == novice


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_places_that_pages_name_exist():
    """`xxx.py` and `folder/` by the end of their path, and every path from the root."""
    files = [path for top in ("src", "tests", "benchmarks") for path in (ROOT / top).rglob("*")]
    ends = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for name in re.findall(r"`([\w./-]+(?:\.py|/))`", text):
            place = name.rstrip("/")
            found = place in ends | TOP or any(end.endswith(f"/{place}") for end in ends)
            assert found, f"{page.name}: {name}"
        for name in re.findall(rf"(?<![\w./-])((?:{'|'.join(TOP)})/[\w./-]*\w)", text):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_recipe_of_the_evaluation_guide_is_valid(tmp_path):
    pages = (ROOT / "docs" / "evaluation.md").read_text()
    texts = re.findall(r"```yaml\n(.*?)```", pages, re.DOTALL)
    for text, command in zip(texts, ("evaluate", "compare"), strict=True):
        (tmp_path / "guide.yaml").write_text(text)
        values = read_values(tmp_path / "guide.yaml")[1]
        assert list(values) == [command]
        assert Recipe.model_validate({"name": "guide", **values})


def test_the_recipe_of_the_generation_guide_is_valid(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/generation.md").read_text(), re.DOTALL)
    (tmp_path / "served.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "served.yaml", command=GENERATE).recipe
    assert recipe.models["larger"].server.prices.completion == 0.4


def test_pitfalls_name_tests_that_exist():
    text = (ROOT / "docs" / "pitfalls.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 40
    for file, name in named:
        found = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {n.name for n in found if isinstance(n, ast.FunctionDef)}, f"{file}: {name}"
    entries = text.split("\n### ")[1:]
    assert all("`tests/" in entry for entry in entries)


def test_code_points_to_documents_that_are_here():
    """A number in a list that only its writer has, or a page that was moved, helps nobody."""
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = file.read_text()
        assert file == Path(__file__) or "PEERS" not in text, file
        for page in re.findall(r"docs/\w+\.md", text):
            assert (ROOT / page).exists(), f"{file}: {page}"
