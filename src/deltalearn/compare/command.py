"""The command `deltalearn compare`: two arms in; a table, JSON and a figure out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltalearn.compare.arms import read_arms
from deltalearn.compare.comparable import check, shared_benchmarks
from deltalearn.compare.differences import compare_all
from deltalearn.compare.power_plan import Plan, print_plan
from deltalearn.compare.result import Comparison
from deltalearn.compare.verdict import verdict
from deltalearn.errors import UserError
from deltalearn.evaluate.matching import Settings, match
from deltalearn.recipe import CompareSpec
from deltalearn.util.files import write_text

STDOUT = Path("-")
PLOT_ENDINGS = ("", ".svg", ".png")
WRITTEN = (".json", ".svg", ".png")  # endings in whose place a recipe's stands


def run_compare(
    spec: CompareSpec,
    *,
    json_file: Path | None = None,
    plot: Path | None = None,
    recipe: str | None = None,
) -> None:
    """Print the table, or JSON alone if it goes to standard output; write what was asked for.

    Args:
        spec: What to compare, and how.
        json_file: Gets all numbers; `-` is standard output.
        plot: Name of a forest plot, which is written as .svg and .png.
        recipe: The resolved recipe; it is written beside each file, as FILE.recipe.yaml.

    Raises:
        UserError: For arms that cannot be compared, or a plot of another kind.
    """
    if plot is not None and plot.suffix not in PLOT_ENDINGS:
        raise UserError(
            f"--plot {plot}: the plot is written as .svg and .png; give a name for both"
        )
    comparison = compare(spec)
    if json_file is not None:
        _emit(comparison.as_json(verdict(comparison)), json_file)
    if json_file != STDOUT:
        from deltalearn.compare.table import print_comparison

        print_comparison(comparison)
    if plot is not None:
        from deltalearn.compare.forest import save_forest

        paths = save_forest(comparison, plot)
        if json_file != STDOUT:
            print("plot: " + ", ".join(map(str, paths)))
    for file in (json_file, plot):
        if recipe is not None and file not in (None, STDOUT):
            name = file.stem if file.suffix in WRITTEN else file.name
            write_text(file.with_name(f"{name}.recipe.yaml"), recipe)


def compare(spec: CompareSpec) -> Comparison:
    """Read both arms, make sure that they may be compared, and compare them.

    Args:
        spec: Both arms and how they are compared.

    Raises:
        UserError: If an arm has no results, or the two were not measured alike.
    """
    a, b = read_arms(
        [Path(place) for place in (spec.a, *spec.also_a)],
        [Path(place) for place in (spec.b, *spec.also_b)],
    )
    names, notes = shared_benchmarks(a, b, spec.benchmarks)
    notes += check(a, b, names, allow_different=spec.allow_different_settings)
    mmlu = spec.mmlu and f"mmlu_{spec.mmlu}"
    if mmlu and mmlu not in names:
        raise UserError(f"--mmlu {spec.mmlu}: it is not scored in both arms")
    settings = Settings(spec.draws, spec.seed, spec.clusters, mmlu)
    rows, averages, cautions = compare_all([match(name, (a, b), settings) for name in names])
    return Comparison(
        a, b, tuple(rows), tuple(averages), (*notes, *cautions), settings.draws, settings.seed
    )


def run_plan(
    discordance: float | None, sd: float | None, effect: float | None, json_file: Path | None
) -> None:
    """Print what the suite could see, before anything is evaluated.

    Args:
        discordance: Share of items on which two models differ.
        sd: Deviation of item differences, instead.
        effect: That is to be seen, in points; default 1.
        json_file: Gets all numbers; `-` is standard output.
    """
    plan = Plan.of(discordance, sd, 1.0 if effect is None else effect)
    if json_file is not None:
        _emit(plan.as_json(), json_file)
    if json_file != STDOUT:
        print_plan(plan)


def _emit(value: dict[str, Any], to: Path) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if to == STDOUT:
        print(text)
    else:
        write_text(to, text + "\n")
