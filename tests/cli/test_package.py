"""Protects what `pip install` brings: ladder, recipes, page template, and nothing that is too big.

Also the limits that the project sets itself: imports point one way, safe loading everywhere.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "deltalearn"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, ROOT],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_wheel_carries_everything(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for model in ("xs", "s", "m"):
        assert f"deltalearn/lab/ladder/{model}/model.safetensors" in names
        assert f"deltalearn/lab/ladder/{model}/tokenizer.json" in names
    assert "deltalearn/lab/ladder/prompts.jsonl" in names
    assert "deltalearn/lab/ladder/manifest.json" in names
    assert {f"deltalearn/recipes/{r.name}" for r in (ROOT / "recipes").glob("*.yaml")} <= names
    assert "deltalearn/tune/model_configs/llama-3.1-8b.json" in names
    suite = {path.relative_to(SOURCE) for path in (SOURCE / "evaluate/tulu3").rglob("*.yaml")}
    assert len(suite) == 13
    assert {f"deltalearn/{path}" for path in suite} <= names
    for file in (
        "generate/engines/vllm_worker.py",
        "evaluate/tulu3/math/symbolic_worker.py",
        "evaluate/tulu3/examples.json",
        "evaluate/sandbox/syscalls.csv",
    ):
        assert f"deltalearn/{file}" in names
    for part in ("report", "theory"):
        assert {f"deltalearn/{part}/template.html.j2", f"deltalearn/{part}/style.css"} <= names
    assert "deltalearn/py.typed" in names  # type checkers read our annotations
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 2_000_000


def test_installed_wheel_works_from_anywhere(wheel, tmp_path):
    """Outside the clone, with the wheel alone on the path, the shipped recipe is found."""
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import deltalearn; from deltalearn.recipe import load_recipe;"
        "from deltalearn.lm.locate import locate; print(deltalearn.__file__);"
        "print(locate(load_recipe('lab').recipe.student.path).directory)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith(str(target)) for line in result.stdout.split())


# Which folder may import which is said in docs/architecture.md, and nowhere else.
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
EVERYWHERE = {"__init__", "errors", "records", "util"}
STAGES = {"prompts", "generate", "pairs", "tune", "evaluate", "compare", "report"}
READS_RESULTS = {("compare", "evaluate"), ("report", "evaluate")}


def may_import() -> dict[str, set[str]]:
    """The block of rules: `folder -> folder folder`."""
    (block,) = re.findall(r"^```imports\n(.*?)^```", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    rules = (line.partition("->") for line in block.splitlines())
    return {folder.strip(): set(others.split()) for folder, _, others in rules}


def imported(path: Path) -> dict[str, int]:
    """{folder or module at the top: line} of what a module imports of the package."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "") == "deltalearn":
            for alias in node.names:
                inside = any((SOURCE / f"{alias.name}{end}").exists() for end in ("", ".py"))
                found[alias.name if inside else "__init__"] = node.lineno
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltalearn."):
            found[node.module.split(".")[1]] = node.lineno
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {n[1]: node.lineno for n in names if n[0] == "deltalearn" and n[1:]}
    return found


SANDBOXED = Path(
    "evaluate/sandbox/inside.py"
)  # runs generated programs; started in the sandbox only


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder or module at the top that a module belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part in ("__init__", "__main__"):  # the Python face and `python -m deltalearn`
        return
    allowed = EVERYWHERE | may_import().get(part, set()) | {part}
    for name, line in imported(path).items():
        assert name in allowed, f"line {line}: {part} imports {name}; see docs/architecture.md"


def test_the_document_names_every_folder_and_no_arrow_too_many():
    rules = may_import()
    assert set(rules) == {part_of(path) for path in modules()} - EVERYWHERE - {"__main__"}
    used: dict[str, set[str]] = {folder: set() for folder in rules}
    for path in modules():
        if part_of(path) in rules:
            used[part_of(path)] |= set(imported(path)) - EVERYWHERE - {part_of(path)}
    assert used == rules


def test_no_circle_and_no_stage_imports_another():
    rules = may_import()
    tuple(TopologicalSorter(rules).static_order())  # raises CycleError
    between = {(a, b) for a in STAGES for b in rules[a] & STAGES}
    assert between <= READS_RESULTS


def test_files_are_short():
    long = [str(path) for path in modules() if len(path.read_text().splitlines()) > 400]
    assert not long


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_unsafe(path):
    text = path.read_text()
    assert not re.search(r"\bimport pickle\b|torch\.load\(|yaml\.load\([^,]*\)", text)
    assert "trust_remote_code=True" not in text
    assert not re.search(r"(?<![\w.])(eval|exec)\(", text)
    if path.relative_to(SOURCE) != SANDBOXED:
        assert not re.search(r"builtins\.(eval|exec)\b", text)
