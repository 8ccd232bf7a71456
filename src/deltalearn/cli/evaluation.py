"""The command that runs a benchmark suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltalearn.cli.settings import (
    Recipe,
    Setting,
    Template,
    settings_of_recipe,
)

# What is asked here may have been a generator, which has more settings.
OF_A_MODEL = ("path", "file", "revision", "chat_template", "template")
NOTHING_RUN = 3  # exit code: every benchmark was left out


@settings_of_recipe(
    {
        "evaluate.benchmarks": "--benchmark",
        "evaluate.split": "--split",
        "evaluate.limit": "--limit",
        "evaluate.reasoning_tokens": "--reasoning-tokens",
        "evaluate.data_dir": "--data-dir",
        "evaluate.include_path": "--include-path",
        "evaluate.backend.kind": "--backend",
        "evaluate.backend.url": "--url",
        "evaluate.backend.key_env": "--key-env",
        "evaluate.backend.tokenizer": "--tokenizer",
        "evaluate.backend.device": "--device",
        "evaluate.backend.dtype": "--dtype",
        "evaluate.backend.batch_size": "--batch-size",
        "evaluate.backend.context": "--context",
        "evaluate.judge.evaluator": "--judge",
        "evaluate.judge.model": "--judge-model",
        "evaluate.judge.url": "--judge-url",
        "evaluate.judge.key_env": "--judge-key-env",
        "evaluate.judge.text_only": "--judge-text-only",
        "evaluate.allow_code": "--allow-code",
        "evaluate.unsafe": "--unsafe",
    }
)
def evaluate(
    settings: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A directory or hub id; with --url its name there; or one of the recipe's models."
        ),
    ] = None,
    recipe: Recipe = None,
    template: Template = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; default evals/<name of the model>.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model, in tables.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in flight at a server or judge. [default: 16]"),
    ] = None,
    backend_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another argument of lm_eval's model."),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Verdicts of AlpacaEval given before; nobody is asked.")
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(help="Of --annotations without a model: the answers that were judged."),
    ] = None,
    set_: Setting = None,
    update: Annotated[
        bool, typer.Option("--update", help="Replace results of other settings in --out.")
    ] = False,
) -> None:
    """Evaluate a model on the 11 benchmarks of Tülu 3; run it again to resume."""
    from deltalearn.errors import UserError
    from deltalearn.pipeline.evaluate_options import DEFAULT
    from deltalearn.pipeline.evaluate_recipe import evaluate_recipe
    from deltalearn.recipe import EVALUATE, load_recipe
    from deltalearn.recipe.load import parse_override, read_values
    from deltalearn.recipe.template import given_arguments

    if annotations is not None and model is None and recipe is None:
        _of_files(annotations, outputs, out, settings, name, update)
        return
    if outputs is not None:
        raise UserError("--outputs goes with --annotations and without a model; leave one out")
    known = read_values(recipe)[1] if recipe is not None else {}
    if model is None and not known.get("student"):
        raise UserError("give a model: a directory, a hub id, or a server's name of it")
    given = {key.removeprefix("evaluate."): value for key, value in settings.items()}
    _check(given, recipe is not None, concurrency, annotations)
    if given["backend.url"] and given["backend.kind"] is None:
        settings["evaluate.backend.kind"] = "openai"
    if not known.get("evaluate") and not given["benchmarks"]:
        settings["evaluate.benchmarks"] = list(DEFAULT)
    if concurrency is not None:
        for section, used in (
            ("backend", given["backend.url"]),
            ("judge", given["judge.evaluator"]),
        ):
            settings[f"evaluate.{section}.concurrency"] = concurrency if used else None
    for text in backend_option or []:
        keys, value = parse_override(text)
        settings.setdefault("evaluate.backend.options", {})[".".join(keys)] = value
    if model is not None and model != "student":
        models = known.get("models")
        named = models.get(model) if isinstance(models, dict) else None
        named = named if isinstance(named, dict) else {"path": model}
        settings["student"] = {k: named[k] for k in OF_A_MODEL if k in named}
    settings |= given_arguments(template or [], "student")
    loaded = load_recipe(recipe, set_ or (), command=EVALUATE, options=settings)
    results = evaluate_recipe(
        loaded, out, name=name, annotations=annotations, update=update, say=typer.echo
    )
    if not results["benchmarks"]:
        raise typer.Exit(NOTHING_RUN)


def _of_files(
    annotations: Path,
    outputs: Path | None,
    out: Path | None,
    settings: dict[str, Any],
    name: str | None,
    update: bool,
) -> None:
    """AlpacaEval of answers and verdicts that are there already."""
    from deltalearn.errors import UserError
    from deltalearn.pipeline.evaluate_files import NAME, evaluate_files

    data_dir = settings.pop("evaluate.data_dir")
    if (settings.pop("evaluate.benchmarks") or [NAME]) != [NAME]:
        raise UserError(f"--annotations without a model are of --benchmark {NAME} alone")
    if given := [key for key, value in settings.items() if value is not None]:
        raise UserError(f"{given[0]} has no effect on --annotations without a model; leave it out")
    evaluate_files(
        annotations, outputs, out, data_dir=data_dir, name=name, update=update, say=typer.echo
    )


def _check(
    given: dict[str, Any], recipe: bool, concurrency: int | None, annotations: Path | None
) -> None:
    """UserError for options that another one leaves without effect."""
    from deltalearn.errors import refuse_idle

    url, judge, judge_url = given["backend.url"], given["judge.evaluator"], given["judge.url"]
    if not recipe:  # which may have what an option needs
        if not (url or judge_url):
            refuse_idle({"--concurrency": concurrency}, "without --url or --judge-url")
        if not url:
            served = {
                "--key-env": given["backend.key_env"],
                "--tokenizer": given["backend.tokenizer"],
            }
            refuse_idle(served, "without --url")
        if not judge:
            names = ("model", "url", "text_only", "key_env")
            of_judge = {f"--judge-{n.replace('_', '-')}": given[f"judge.{n}"] for n in names}
            refuse_idle(of_judge, "without --judge")
        if not given["allow_code"]:
            refuse_idle({"--unsafe": given["unsafe"]}, "without --allow-code")
    if annotations:
        refuse_idle({"--judge": judge}, "beside --annotations")
    if url:
        vllm = given["backend.kind"] == "vllm"
        refuse_idle({"--backend vllm": vllm, "--device": given["backend.device"]}, "beside --url")
    if given["benchmarks"] and not {"alpaca_eval", "tulu3"} & set(given["benchmarks"]):
        judging = {"--judge": judge, "--annotations": annotations}
        refuse_idle(judging, "without --benchmark alpaca_eval")
