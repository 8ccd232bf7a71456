"""What `deltalearn run` is told beside its recipe; its options are made of these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from deltalearn.errors import UserError, refuse_idle
from deltalearn.util.text_format import did_you_mean

StageName = Literal["prompts", "generate", "pairs", "tune", "evaluate", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
WORK = ("--update", "--until", "--parallel")  # options that a dry run has no use for


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
            raise UserError(
                f"--until {self.until}: no such stage; there are {', '.join(STAGES)}"
                f"{did_you_mean(self.until, STAGES)}"
            )
        if self.parallel < 1:
            raise UserError(f"--parallel {self.parallel}: at least 1 is needed")

    def check(self, rates: Rates, dry_run: bool) -> None:
        """UserError for options without effect: speeds are for a dry run, which runs nothing."""
        if dry_run:
            given = {name: value for name, value in _given(self).items() if name in WORK}
            refuse_idle(given, "with --dry-run, which runs nothing")
        else:
            refuse_idle(_given(rates), "without --dry-run")


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


def _given(options: RunOptions | Rates) -> dict[str, bool]:
    """Whether each option is another than its default, by its name."""
    values = vars(options).items()
    return {f"--{n.replace('_', '-')}": v != getattr(type(options), n) for n, v in values}
