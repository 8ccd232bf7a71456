"""A stage of `gpu.py`, and what it is told."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAB = "package://deltalearn.lab/ladder"


@dataclass(frozen=True)
class Stage:
    """A stage: what it does, its time limit on a GPU, and that of a run on a CPU."""

    run: Callable[[Job], None]
    seconds: int
    tiny_seconds: int = 900  # for a machine that has other work: only what hangs is cut


@dataclass(frozen=True)
class Job:
    """What a stage is told by `gpu.py`; `until` is the Unix time at which it is cut."""

    stage: str
    lines: str
    work: str
    shape: str
    tiny: bool
    until: float

    @property
    def device(self) -> str:
        """Where models compute: a GPU, or a CPU to show that all runs."""
        return "cpu" if self.tiny else "cuda"

    @property
    def directory(self) -> Path:
        """The stage's own place for files."""
        return Path(self.work) / self.stage

    @property
    def left(self) -> float:
        """Seconds until the stage is cut."""
        return self.until - time.time()

    def say(self, **found: Any) -> None:
        """Append a finding to the results, safe from whatever comes next."""
        with Path(self.lines).open("a") as lines:
            lines.write(json.dumps({"stage": self.stage, **found}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    @contextmanager
    def told(self, **what: Any) -> Iterator[None]:
        """Let an error of the block be a finding, and leave room for what comes next.

        Running out of memory is a result; whoever sets the limit of time still ends the stage.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            self.say(**what, error=f"{type(error).__name__}: {error}"[-800:])
        finally:
            gc.collect()
            if self.device == "cuda":
                import torch

                torch.cuda.empty_cache()
