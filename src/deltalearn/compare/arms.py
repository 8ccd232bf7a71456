"""What stands on either side of a comparison: addresses -> arms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deltalearn.errors import UserError
from deltalearn.evaluate.arms import NAME_LENGTH, Arm, Run
from deltalearn.util.text_format import did_you_mean, listing, one_line


def read_arms(a: Sequence[Path], b: Sequence[Path]) -> tuple[Arm, Arm]:
    """Both arms, with names that tell them apart.

    Args:
        a, b: Addresses of each side: a result directory, a directory with one of those for each
            training seed, or RUN:ARM, an arm or a model of a run directory.

    Raises:
        UserError: If an address has no results, or if evaluations are given twice.
    """
    runs_a, runs_b = _runs(a), _runs(b)
    both = {run.directory.resolve() for run in runs_a} & {run.directory.resolve() for run in runs_b}
    if both:
        raise UserError(f"{both.pop()}: is in both arms; give two different evaluations")
    name_a, name_b = _name(runs_a, a), _name(runs_b, b)
    if name_a == name_b:
        name_a, name_b = _tails(a[0].resolve(), b[0].resolve())
    return Arm(name_a, runs_a), Arm(name_b, runs_b)


def _tails(a: Path, b: Path) -> tuple[str, str]:
    """The ends of two different paths, as long as it takes to tell them apart."""
    for count in range(1, max(len(a.parts), len(b.parts)) + 1):
        tails = ["/".join(path.parts[-count:]) for path in (a, b)]
        if tails[0] != tails[1]:
            break
    return one_line(tails[0], NAME_LENGTH), one_line(tails[1], NAME_LENGTH)


def _name(runs: Sequence[Run], given: Sequence[Path]) -> str:
    """What all runs are called, as seeds of an arm or as models, or else what was given."""
    for names in ({run.arm for run in runs}, {run.name for run in runs}):
        if len(names) == 1 and (name := names.pop()):
            return name
    return one_line(given[0].resolve().name, NAME_LENGTH)


def _runs(given: Sequence[Path]) -> tuple[Run, ...]:
    directories = [directory for path in given for directory in _directories(path)]
    places = [directory.resolve() for directory in directories]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise UserError(f"{twice}: is twice in one arm; a run counts once")
    runs = tuple(Run.read(directory) for directory in directories)
    seen: dict[str, Run] = {}
    for run in runs:
        if run.identity is None:
            continue
        if run.identity in seen:
            raise UserError(
                f"{seen[run.identity].directory} and {run.directory} are evaluations of the same "
                "weights; an arm has one evaluation for each training seed, as a repeat tells "
                "nothing about training"
            )
        seen[run.identity] = run
    return runs


def _directories(path: Path) -> list[Path]:
    """`path` itself if it has results, else its sub-directories that have, or those of RUN:ARM."""
    if (path / "results.json").is_file():
        return [path]
    run, _, arm = str(path).rpartition(":")
    if not path.exists() and (Path(run) / "run.json").is_file():
        return _of_run(Path(run), arm)
    if (path / "run.json").is_file():
        raise UserError(
            f"{path}: a run with several models in it; say which, as {path}:ARM: "
            f"{listing(_scored(path)) or 'none is scored yet'}"
        )
    found = sorted(file.parent for file in path.glob("*/results.json"))
    if not found:
        raise UserError(
            f"{path}: no results.json in it or in a directory of it; give what `deltalearn "
            "evaluate` wrote with --out, a directory with one of those for each training seed, or "
            "RUN:ARM, an arm of a run directory"
        )
    return found


def _of_run(run: Path, arm: str) -> list[Path]:
    """Result directories of one arm, a seed each, or of one model; `base` is the student."""
    found = _scored(run).get(arm)
    if not found:
        raise UserError(
            f"{run}:{arm}: no scores of it; this run has "
            f"{listing(_scored(run)) or 'none: its evaluate stage has not run'}"
            f"{did_you_mean(arm, _scored(run))}"
        )
    return found


def _scored(run: Path) -> dict[str, list[Path]]:
    """What is scored in a run directory: arms by name, then its models."""
    found: dict[str, list[Path]] = {}
    recipe = json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]
    for seed in recipe["seeds"]:  # those of a recipe before do not count
        for file in sorted((run / "scores").glob(f"arms/*/seed-{seed}/results.json")):
            found.setdefault(file.parent.parent.name, []).append(file.parent)
    for file in sorted((run / "scores").glob("models/*/results.json")):
        name = file.parent.name
        found.setdefault("base" if name == "student" else name, [file.parent])
    return found
