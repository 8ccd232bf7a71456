"""Commands about scores: compare two evaluated models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltalearn.cli.settings import Recipe, settings_of_recipe

FLAGS = {
    "compare.also_a": "--also-a",
    "compare.also_b": "--also-b",
    "compare.benchmarks": "--benchmark",
    "compare.mmlu": "--mmlu",
    "compare.allow_different_settings": "--allow-different-settings",
    "compare.clusters": "--clusters/--no-clusters",
    "compare.draws": "--draws",
    "compare.seed": "--seed",
}


@settings_of_recipe(FLAGS)
def compare(
    settings: dict[str, Any],
    a: Annotated[
        str | None, typer.Argument(help="Result directory, one with several (seeds), or RUN:ARM.")
    ] = None,
    b: Annotated[str | None, typer.Argument(help="What A is compared with, likewise.")] = None,
    recipe: Recipe = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the numbers; - for stdout.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A forest plot: FILE.svg and FILE.png.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="What the suite could see; nothing is read.")
    ] = False,
    discordance: Annotated[
        float | None, typer.Option(help="Of --plan: share of items on which models differ.")
    ] = None,
    sd: Annotated[
        float | None, typer.Option(help="Of --plan: deviation of item differences, instead.")
    ] = None,
    effect: Annotated[float | None, typer.Option(help="Of --plan: points. [default: 1]")] = None,
) -> None:
    """Compare two evaluated models on the same items, with intervals and a verdict."""
    from deltalearn.compare.command import run_compare, run_plan
    from deltalearn.errors import refuse_idle
    from deltalearn.recipe import COMPARE, load_recipe

    if plan:
        given = {flag.partition("/")[0]: settings[key] for key, flag in FLAGS.items()}
        given |= {"A": a, "B": b, "--recipe": recipe, "--plot": plot}
        given = {name: value is not None for name, value in given.items()}
        refuse_idle(given, "with --plan, which reads no results")
        run_plan(discordance, sd, effect, json)
        return
    sizes = {"--discordance": discordance, "--sd": sd, "--effect": effect}
    refuse_idle(sizes, "without --plan")
    for side, arm in (("a", a), ("b", b)):
        settings[f"compare.{side}"] = arm
        if arm is not None and settings[f"compare.also_{side}"] is None:
            settings[f"compare.also_{side}"] = []  # the recipe's are seeds of another arm
    loaded = load_recipe(recipe, command=COMPARE, options=settings)
    spec = loaded.recipe.compare
    assert spec is not None  # the command needs its arms
    run_compare(spec, json_file=json, plot=plot, recipe=loaded.resolved_yaml())
