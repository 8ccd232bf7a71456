"""What `deltalearn run` is told beside its recipe; its options are made of these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from deltalearn.errors import UserError

StageName = Literal["prompts", "generate", "pairs", "tune", "evaluate", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True)
class RunOptions:
    """Where a run stands, how far it goes, and what it may do again."""

    out: Annotated[Path | None, "Run directory; default runs/<name of the recipe>."] = None
    update: Annotated[bool, "Let changed settings re-run what depends on them."] = False
    until: Annotated[StageName, "Last stage."] = "report"
    retry_errors: Annotated[bool, "Ask again for answers that ended in errors."] = False
    parallel: Annotated[int, "Models at work at a time, each on a GPU of its own."] = 1

    def __post_init__(self) -> None:
        if self.until not in STAGES:
            raise UserError(f"--until {self.until}: no such stage; there are {', '.join(STAGES)}")
        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: at least 1 is needed")

    def check(self, rates: Rates, dry_run: bool) -> None:
        """UserError for options without effect: speeds are for a dry run, which runs nothing."""
        idle = (self, ("update", "until", "parallel")) if dry_run else (rates, tuple(vars(rates)))
        for name in idle[1]:
            if getattr(idle[0], name) != getattr(type(idle[0]), name):
                end = "with --dry-run, which runs nothing" if dry_run else "without --dry-run"
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} has no effect {end}; leave it out")


@dataclass(frozen=True)
class Rates:
    """Expected speeds of the machine; what is None is measured where a run has begun."""

    tokens_per_second: Annotated[
        float | None, "Of --dry-run: generated tokens, over all devices."
    ] = None
    tflops: Annotated[float | None, "Of --dry-run: useful TFLOP/s of a device in training."] = None
    devices: Annotated[int, "Of --dry-run: devices that train."] = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {value:g}: a number above zero is needed")
