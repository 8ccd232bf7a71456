"""Protects documentation that tools render: every public name says what it is, by itself.

Google style (Args, Returns, Raises) for functions that other folders call. The first line is a
sentence or a noun with what it needs, not the rest of one that begins at the name ("How many...").
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltalearn

SOURCE = Path(deltalearn.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
FOLDERS = sorted({path.relative_to(SOURCE).parts[0] for path in TREES})
FRAGMENT = ("As", "How", "Of", "What", "Whether", "Who")  # with which no first line begins

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Names without an underscore in a module, and in its classes."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


def used_elsewhere() -> dict[str, set[str]]:
    """Names of each module that another folder, or its own `__init__`, imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in TREES.items():
        own = path.relative_to(SOURCE).parts[0]
        for node in ast.walk(tree):
            module = (getattr(node, "module", None) or "").split(".")
            elsewhere = module[1:] and (module[1] != own or path.name == "__init__.py")
            if isinstance(node, ast.ImportFrom) and module[0] == "deltalearn" and elsewhere:
                found[".".join(module)].update(alias.name for alias in node.names)
    return found


USED = used_elsewhere()


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    return len(given.posonlyargs + given.args + given.kwonlyargs)


def problems(path: Path) -> list[str]:
    module = ".".join(["deltalearn", *path.relative_to(SOURCE).with_suffix("").parts])
    found = []
    for name, node in public(TREES[path].body):
        text = ast.get_docstring(node)
        if text is None:
            found.append(f"{name} has no docstring")
            continue
        words = text.split("\n")[0].split()
        if words[0] in FRAGMENT or len(words) < 4:
            found.append(f"{name}: {' '.join(words)!r} says little by itself")
        called = not isinstance(node, ast.ClassDef) and name in USED[module]
        if called and parameters(node) >= 2 and "Args:\n" not in text:
            found.append(f"{name} is called from another folder and has no Args section")
    return [f"{path.relative_to(SOURCE)}:{line}" for line in found]


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_names_are_documented(folder):
    paths = [path for path in TREES if path.relative_to(SOURCE).parts[0] == folder]
    assert [line for path in paths for line in problems(path)] == []
