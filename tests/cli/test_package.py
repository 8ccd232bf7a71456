"""Protects what `pip install` brings: ladder, recipes, page template, and nothing that is too big.

Also the limits that the project sets itself: imports point one way, safe loading everywhere.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
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
    for script in ("generate/engines/vllm_worker.py", "evaluate/tulu3/math/symbolic_worker.py"):
        assert f"deltalearn/{script}" in names
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


# Which folder may import which: cli -> pipeline -> stages -> leaves (docs/architecture.md).
# Everything may import errors.py, records.py and util/. A stage imports no other stage.
EVERYWHERE = {"__init__", "errors", "records", "util"}
MAY_IMPORT = {
    # leaves
    "errors": set(),
    "records": set(),
    "util": set(),
    "stats": set(),
    "formats": set(),
    "openai_api": set(),
    "lm": set(),
    "recipe": set(),
    "judge": set(),
    # what stages leave for one another
    "responses": {"formats", "lm"},
    # stages
    "prompts": {"formats"},
    "generate": {"lm", "openai_api", "responses"},
    "pairs": {"responses"},
    "tune": {"formats", "lm", "recipe"},
    "evaluate": {"formats", "judge", "lm", "openai_api", "stats"},
    "compare": {"evaluate", "stats"},
    "report": {"evaluate", "stats"},
    # what drives and shows them
    "pipeline": {
        "evaluate", "formats", "generate", "judge", "lm", "openai_api", "pairs", "prompts",
        "recipe", "report", "responses", "tune",
    },
    "theory": set(),
    "lab": {"lm"},
    "cli": {
        "compare", "evaluate", "lab", "pipeline", "recipe", "report", "responses", "theory",
    },
}  # fmt: skip


SANDBOXED = Path(
    "evaluate/sandbox/inside.py"
)  # runs generated programs; started in the sandbox only


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__main__":
        return
    allowed = EVERYWHERE | MAY_IMPORT.get(part, set()) | {part}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deltalearn"):
            name = [*node.module.split("."), "__init__"][1]
            assert name in allowed, f"line {node.lineno}: {part} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_unsafe(path):
    text = path.read_text()
    assert not re.search(r"\bimport pickle\b|torch\.load\(|yaml\.load\([^,]*\)", text)
    assert "trust_remote_code=True" not in text
    assert not re.search(r"(?<![\w.])(eval|exec)\(", text)
    if path.relative_to(SOURCE) != SANDBOXED:
        assert not re.search(r"builtins\.(eval|exec)\b", text)
