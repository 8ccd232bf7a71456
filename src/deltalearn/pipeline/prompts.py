"""The stage that reads prompts, and the prompts that a run has kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.formats.rows import files_line, source_digest
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.stage import Say, Stage
from deltalearn.prompts.read import read_prompts
from deltalearn.recipe import PromptsSpec
from deltalearn.records import Prompt
from deltalearn.util.files import read_jsonl_lazily, write_jsonl

PROMPTS, REJECTS = "prompts.jsonl", "prompts.rejects.jsonl"
REJECTS_SHOWN = 3


@dataclass(frozen=True)
class PromptFile:
    """The prompts that a run has kept, read from its file at each iteration."""

    path: Path

    def __iter__(self) -> Iterator[Prompt]:
        for row in read_jsonl_lazily(self.path):
            yield Prompt(row["id"], tuple(row["messages"]))


def prompts_stage(context: Context) -> Stage:
    """Make the stage that reads and checks prompts and keeps those that can be used."""
    spec = context.recipe.prompts
    assert spec is not None  # whoever asks models has prompts

    def work() -> dict[str, Any]:
        return read_and_keep_prompts(spec, context.directory.path, context.say)

    inputs = {"spec": spec.model_dump(), "source": source_digest(spec.source, spec.split)}
    return Stage("prompts", inputs, (PROMPTS, REJECTS), work)


def read_and_keep_prompts(spec: PromptsSpec, folder: Path, say: Say) -> dict[str, int]:
    """Read prompts, keep them in a folder, tell of the first rejects, and return counts.

    prompts.jsonl has the usable ones, prompts.rejects.jsonl the others with file, line and reason.
    """
    if line := files_line(spec.source, spec.split):
        say(line)
    found = read_prompts(**spec.model_dump())
    rows = ({"id": p.id, "messages": list(p.messages)} for p in found.prompts)
    write_jsonl(folder / PROMPTS, rows)
    rejects = folder / REJECTS
    write_jsonl(rejects, found.rejects)
    for reject in found.rejects[:REJECTS_SHOWN]:
        say(f"  rejected {reject['where']}: {reject['reason']}")
    if len(found.rejects) > REJECTS_SHOWN:
        say(f"  ... all {len(found.rejects)} in {rejects}")
    return found.counts
