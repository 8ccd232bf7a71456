"""The command `deltalearn compare`: two arms in; a table, JSON and a figure out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalearn.compare.arms import read_arms
from deltalearn.compare.comparable import check, shared_benchmarks
from deltalearn.compare.differences import compare_all
from deltalearn.compare.power_plan import Plan, plan_json, print_plan
from deltalearn.compare.result import Comparison
from deltalearn.compare.verdict import verdict
from deltalearn.errors import UserError
from deltalearn.evaluate.matching import Settings, match
from deltalearn.evaluate.tulu3.suite import MMLU
from deltalearn.stats.bootstrap import DRAWS
from deltalearn.util.files import write_text

STDOUT = Path("-")
MMLU_NAMES = {name.removeprefix("mmlu_"): name for name in MMLU}
LEAST_DRAWS = 200
PLOT_ENDINGS = ("", ".svg", ".png")


@dataclass(frozen=True)
class Options:
    """The command line's options; None and () mean not given."""

    a: Path | None = None
    b: Path | None = None
    also_a: Sequence[Path] = ()
    also_b: Sequence[Path] = ()
    benchmarks: Sequence[str] = ()
    mmlu: str | None = None
    allow_different_settings: bool = False
    no_clusters: bool = False
    draws: int | None = None
    seed: int | None = None
    json: Path | None = None
    plot: Path | None = None
    plan: bool = False
    discordance: float | None = None
    sd: float | None = None
    effect: float | None = None


def run_compare(options: Options) -> None:
    """Print the table, or JSON alone if it goes to standard output; write what was asked for."""
    _refuse_idle(options)
    if options.plan:
        _plan(options)
        return
    comparison = compare(options)
    if options.json is not None:
        text = json.dumps(
            comparison.as_json(verdict(comparison)), indent=2, ensure_ascii=False, allow_nan=False
        )
        _emit(text, options.json)
    if options.json != STDOUT:
        from deltalearn.compare.table import print_comparison

        print_comparison(comparison)
    if options.plot is not None:
        from deltalearn.compare.forest import save_forest

        paths = save_forest(comparison, options.plot)
        if options.json != STDOUT:
            print("plot: " + ", ".join(map(str, paths)))


def compare(options: Options) -> Comparison:
    """Read both arms, make sure that they may be compared, and compare them."""
    a, b = read_arms([options.a, *options.also_a], [options.b, *options.also_b])
    names, notes = shared_benchmarks(a, b, options.benchmarks)
    notes += check(a, b, names, allow_different=options.allow_different_settings)
    settings = Settings(
        draws=DRAWS if options.draws is None else options.draws,
        seed=options.seed or 0,
        clustered=not options.no_clusters,
        mmlu=_mmlu(options.mmlu, names),
    )
    rows, averages, cautions = compare_all([match(name, (a, b), settings) for name in names])
    return Comparison(
        a, b, tuple(rows), tuple(averages), (*notes, *cautions), settings.draws, settings.seed
    )


def _mmlu(variant: str | None, names: Sequence[str]) -> str | None:
    if variant is None:
        return None
    if variant not in MMLU_NAMES:
        raise UserError(f"--mmlu {variant}: there are {' and '.join(MMLU_NAMES)}")
    if MMLU_NAMES[variant] not in names:
        raise UserError(f"--mmlu {variant}: it is not scored in both arms")
    return MMLU_NAMES[variant]


def _plan(options: Options) -> None:
    effect = 1.0 if options.effect is None else options.effect
    plan = Plan.of(options.discordance, options.sd, effect)
    if options.json is not None:
        _emit(plan_json(plan), options.json)
    if options.json != STDOUT:
        print_plan(plan)


def _emit(text: str, to: Path) -> None:
    if to == STDOUT:
        print(text)
    else:
        write_text(to, text + "\n")


def _refuse_idle(options: Options) -> None:
    """An option that changes nothing is a misunderstanding: say so rather than ignore it."""
    arms = {
        "A": options.a,
        "--also-a": options.also_a,
        "--also-b": options.also_b,
        "--benchmark": options.benchmarks,
        "--mmlu": options.mmlu,
        "--allow-different-settings": options.allow_different_settings,
        "--no-clusters": options.no_clusters,
        "--draws": options.draws is not None,
        "--seed": options.seed is not None,
        "--plot": options.plot,
    }
    sizes = {"--discordance": options.discordance, "--sd": options.sd, "--effect": options.effect}
    if options.plan:
        if given := [name for name, value in arms.items() if value]:
            raise UserError(f"{given[0]} has no effect with --plan, which reads no results")
        return
    if given := [name for name, value in sizes.items() if value is not None]:
        raise UserError(f"{given[0]} has no effect without --plan")
    if options.a is None or options.b is None:
        raise UserError(
            "give two arms, A and B: directories that `deltalearn evaluate` wrote, directories "
            "with one of those for each training seed, or RUN:ARM for an arm of a run directory "
            "(or --plan, for what could be seen)"
        )
    if options.draws is not None and options.draws < LEAST_DRAWS:
        raise UserError(f"--draws {options.draws}: too few for the ends of a 95% interval")
    if options.plot is not None and options.plot.suffix not in PLOT_ENDINGS:
        raise UserError(
            f"--plot {options.plot}: the plot is written as .svg and .png; give a name for both"
        )
