"""Prompts, and a server that refuses one of them."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.fault_server import well


def say_no_to_q2(question: str, attempt: int):
    return "400" if question == "q2" else well(question, attempt)


def prompts_file(folder: Path, count: int) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(count)))
    return file


def counts_of_pairs(run: Path) -> dict:
    """What the one stage of pairs counted."""
    stages = json.loads((run / "run.json").read_text())["stages"]
    (counts,) = [stage["counts"] for name, stage in stages.items() if name.startswith("pairs")]
    return counts
