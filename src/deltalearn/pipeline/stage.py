"""What a stage of a run is, its work as a job for any process, and how it is told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from deltalearn.pipeline.manifest import StageRecord
from deltalearn.recipe.base import Spec
from deltalearn.util.files import digest, read_jsonl
from deltalearn.util.text_format import words

Say = Callable[[str], None]
GO = "go"  # what a process that is started for a job waits for, once it has prepared
SHOWN_OF_LAST_STEP = ("loss", "margin", "accuracy")


def silent(line: str) -> None:
    """Take a line and tell nobody."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One stage of a run, which is done again when an input is another one.

    Attributes:
        name: As in run.json.
        inputs: All that decides what it leaves, by name; its key is their hash.
        outputs: Paths in the run that are there when it is done.
        work: Does it and returns counts.
        prepare: Finds out, before anything is changed, whether `work` is possible, and may leave it
            what was read.
        scratch: Paths in the run that hold what it makes, taken away before it works for others.
        costly: Paths that are not given up unless a person said so, and then kept aside; without
            which a start that failed has left nothing.
        copied: Paths of which it replaces a part; what is there is kept aside as a copy.
        called: Inputs by the words of a message.
    """

    name: str
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    work: Callable[[], dict[str, Any]]
    prepare: Callable[[], None] = _nothing
    scratch: tuple[str, ...] = ()
    costly: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    called: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of all inputs."""
        return digest(self.inputs)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The inputs as run.json keeps them: text and numbers as they are, the rest as a hash."""
        plain = (str, int, float, bool, type(None))
        return {n: v if isinstance(v, plain) else digest(v) for n, v in self.inputs.items()}

    def changed(self, before: StageRecord) -> list[str]:
        """Name the inputs that were others for the record `before`, in words."""
        names = [n for n, value in self.parts.items() if before.inputs.get(n) != value]
        return [self.called.get(n, n) for n in names] if before.inputs else ["inputs"]


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


def stage_line(name: str, record: StageRecord) -> str:
    """Write the line that tells people of a finished stage."""
    return f"{name:<28} {record.seconds:>7.1f} s  {counts_line(record.counts)}"


def counts_line(counts: Mapping[str, Any]) -> str:
    """Write counts on one line, zeros left out; of the last training step what tells most."""
    parts = []
    for name, value in counts.items():
        if name == "last":
            parts.append(f"last step: {last_step(value)}")
        elif isinstance(value, dict):
            inner = [f"{words(k)} {v:,}" for k, v in value.items() if v and not isinstance(v, str)]
            parts += [f"{words(name)}: {', '.join(inner)}"] if inner else []
        elif isinstance(value, str):
            continue  # said when it was decided
        elif isinstance(value, int):
            parts += [f"{words(name)} {value:,}"] if value else []
        else:
            parts.append(f"{words(name)} {value:.4f}")
    return "  ".join(parts)


def last_step(record: Mapping[str, Any]) -> str:
    """Write what tells most of a training step."""
    return ", ".join(f"{k} {record[k]:.4f}" for k in SHOWN_OF_LAST_STEP if k in record)


def tuned_line(final: Path, record: StageRecord) -> str:
    """Write the steps taken, which of them `final` is if not the last, and what the last showed.

    Of a run that evaluates, what held-out pairs and development questions gave for `final`. Time
    is that of the steps, over all starts of the run, or of the last start where a log has no times.
    """
    counts = record.counts
    last, steps = counts["last"], counts["steps"]
    taken = f"{steps:,} steps"
    if last.get("stopped_early"):
        taken = f"stopped early after {steps:,} of {last['planned_steps']:,} steps"
    parts = [f"{taken} in {last.get('seconds', record.seconds):,.1f} s"]
    if last.get("final_step", steps) != steps:
        parts.append(f"final is step {last['final_step']:,}")
    parts.append(f"last step: {last_step(last)}")
    step = last.get("final_step", steps)
    return f"{final}: {'; '.join([*parts, *_evaluated(final.with_name('evals.jsonl'), step)])}"


def _evaluated(file: Path, step: int) -> list[str]:
    """What the evaluations on the way gave, at `step` or else at the last one before the end."""
    records = read_jsonl(file) if file.is_file() else []
    if not records:
        return []
    record = next((r for r in records if r["step"] == step), records[-1])
    at = "" if record["step"] == step else f" at step {record['step']:,}"
    held_out = last_step({k.removeprefix("eval_"): v for k, v in record.items()})
    dev = {k.removeprefix("dev_"): v for k, v in record.items() if k.startswith("dev_")}
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in dev.items())
    found = {"held-out pairs": held_out, "dev": scores}
    return [f"{what}{at}: {said}" for what, said in found.items() if said]
