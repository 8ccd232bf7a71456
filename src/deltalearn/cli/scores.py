"""Commands about scores: compare two evaluated models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[
        Path | None, typer.Argument(help="Result directory, one with several (seeds), or RUN:ARM.")
    ] = None,
    b: Annotated[Path | None, typer.Argument(help="What A is compared with, likewise.")] = None,
    also_a: Annotated[
        list[Path] | None, typer.Option(help="Another training seed of A; repeatable.")
    ] = None,
    also_b: Annotated[
        list[Path] | None, typer.Option(help="Another training seed of B; repeatable.")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeatable. Default: all shared.")
    ] = None,
    mmlu: Annotated[
        str | None, typer.Option(help="Which counts in the average: cot (default) or mc.")
    ] = None,
    allow_different_settings: Annotated[
        bool, typer.Option("--allow-different-settings", help="Note them instead of refusing.")
    ] = False,
    no_clusters: Annotated[
        bool, typer.Option("--no-clusters", help="Take items as drawn by themselves.")
    ] = False,
    draws: Annotated[int | None, typer.Option(help="Of the bootstrap; default 10000.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the bootstrap; default 0.")] = None,
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
    effect: Annotated[float | None, typer.Option(help="Of --plan: points; default 1.")] = None,
) -> None:
    """Compare two evaluated models on the same items, with intervals and a verdict."""
    from deltalearn.compare.command import Options, run_compare

    run_compare(
        Options(
            a=a,
            b=b,
            also_a=also_a or (),
            also_b=also_b or (),
            benchmarks=benchmark or (),
            mmlu=mmlu,
            allow_different_settings=allow_different_settings,
            no_clusters=no_clusters,
            draws=draws,
            seed=seed,
            json=json,
            plot=plot,
            plan=plan,
            discordance=discordance,
            sd=sd,
            effect=effect,
        )
    )
