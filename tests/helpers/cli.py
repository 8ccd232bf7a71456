"""The command line in a process of its own, and a small recipe for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import yaml

LADDER = Path(str(resources.files("deltalearn.lab"))) / "ladder"


def deltalearn(*arguments: str | Path, cwd: Path | None = None, limit: str = "", **env: str):
    """Run the command line in a process of its own; `limit` is a shell `ulimit` to set before."""
    command = [sys.executable, "-m", "deltalearn", *map(str, arguments)]
    if limit:
        command = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *command]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=300
    )


def small(path: Path, **changes) -> Path:
    """A small recipe: one arm, one seed, few prompts; `changes` replaces whole top-level keys."""
    questions = ["rev", "sort", "dup", "pal", "rot"]
    prompts = [
        {"prompt": f"{task} {text}"} for task in questions for text in ("abcd", "bdce", "ghij")
    ]
    (path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    recipe = {
        "name": "small",
        "seeds": [0],
        "device": "cpu",
        "dtype": "float32",
        "student": {"path": "package://deltalearn.lab/ladder/m"},
        "models": {
            "s": {"path": "package://deltalearn.lab/ladder/s"},
            "xs": {"path": "package://deltalearn.lab/ladder/xs"},
        },
        "prompts": {"source": str(path / "prompts.jsonl")},
        "generate": {"temperature": 1.0, "max_tokens": 16},
        "tune": {"lr": 1e-4, "batch_size": 4, "steps": 2},
        "arms": {"base": {}, "delta": {"chosen": "s", "rejected": "xs"}},
        "evaluate": {
            "questions": {
                "lab": {
                    "source": "package://deltalearn.lab/ladder/eval.jsonl",
                    "task_column": "task",
                    "max_tokens": 16,
                    "limit": 22,
                }
            }
        },
        **changes,
    }
    file = path / "small.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def fails(result, *texts: str) -> None:
    """The run ended as a user error: code 2, a message, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(("error:", "Usage:"))
    for text in texts:
        assert text in result.stderr, result.stderr
