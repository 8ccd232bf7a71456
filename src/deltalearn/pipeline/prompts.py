"""The stage that reads prompts, and the prompts that a run has kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.recipe.schema import PromptsSpec
from deltalearn.records import Prompt
from deltalearn.util.files import read_jsonl_lazily, write_jsonl

if TYPE_CHECKING:
    from deltalearn.prompts.read import PromptSet

Say = Callable[[str], None]
REJECTS_SHOWN = 3


@dataclass(frozen=True)
class PromptFile:
    """The prompts that a run has kept, read from its file at each iteration."""

    path: Path

    def __iter__(self) -> Iterator[Prompt]:
        for row in read_jsonl_lazily(self.path):
            yield Prompt(row["id"], tuple(row["messages"]))


def read_and_keep_prompts(spec: PromptsSpec, folder: Path, say: Say) -> dict[str, int]:
    """Read prompts as `spec` says and keep them in `folder`; return counts.

    prompts.jsonl has the usable ones, prompts.rejects.jsonl the others with file, line and reason.
    """
    from deltalearn.prompts.read import read_prompts

    found: PromptSet = read_prompts(**spec.model_dump())
    rows = ({"id": p.id, "messages": list(p.messages)} for p in found.prompts)
    write_jsonl(folder / "prompts.jsonl", rows)
    rejects = folder / "prompts.rejects.jsonl"
    write_jsonl(rejects, found.rejects)
    for reject in found.rejects[:REJECTS_SHOWN]:
        say(f"  rejected {reject['where']}: {reject['reason']}")
    if len(found.rejects) > REJECTS_SHOWN:
        say(f"  ... all {len(found.rejects)} in {rejects}")
    return found.counts
