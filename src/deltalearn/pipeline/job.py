"""A stage's work in a form that any process can do: this one, or one that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from deltalearn.pipeline.stage import Say
from deltalearn.recipe.base import Spec

GO = "go"  # what a process that is started for a job waits for, once it has prepared


class Doing(Protocol):
    """Someone who does a job. The two methods are those that a `Stage` has."""

    def prepare(self) -> None:
        """Find out whether the work is possible. UserError for what would stop it later."""

    def work(self) -> dict[str, Any]:
        """Do the job; return its counts."""


class Job(Spec):
    """All that a process needs to know for one independent stage of a run.

    Attributes:
        kind: Which stage; in JSON it tells whose job it is.
        title: What its bar is called, and what is said of its errors.
        device: As in the recipe; where a process was given one GPU, it sees no other.
        dtype: As in the recipe.
    """

    kind: str
    title: str
    device: str
    dtype: str

    @property
    def alike(self) -> Any:
        """Name what the job has in common with jobs that had better not begin at the same time."""
        return None

    @property
    def held(self) -> Path | None:
        """The folder that a process started for it holds while it is at work, if any."""
        return None

    def begin(self, say: Say) -> Doing:
        """Give what does the job in this process, where no others work at it."""
        raise NotImplementedError
