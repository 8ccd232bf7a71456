"""The command that runs a benchmark suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deltalearn.cli.settings import settings_of_recipe

NOTHING_RUN = 3  # exit code: every benchmark was left out


@settings_of_recipe(
    {
        "evaluate.benchmarks": "--benchmark",
        "evaluate.split": "--split",
        "evaluate.limit": "--limit",
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
    recipe: Annotated[
        str | None, typer.Option(help="A recipe, file or name; options win over it.")
    ] = None,
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
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. limit=9."),
    ] = None,
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
        settings["student"] = {
            "path": (known.get("models") or {}).get(model, {}).get("path", model)
        }
    loaded = load_recipe(recipe, set_ or (), command=EVALUATE, options=settings)
    results = evaluate_recipe(
        loaded, out, name=name, annotations=annotations, update=update, say=typer.echo
    )
    if not results["benchmarks"]:
        raise typer.Exit(NOTHING_RUN)


def _check(
    given: dict[str, Any], recipe: bool, concurrency: int | None, annotations: Path | None
) -> None:
    """UserError for options that another one leaves without effect."""
    from deltalearn.errors import UserError

    url, judge, benchmarks = given["backend.url"], given["judge.evaluator"], given["benchmarks"]
    judge_url = given["judge.url"]
    if not recipe:  # which may have what an option needs
        _refuse_idle(
            [
                ("--concurrency", concurrency, "--url or --judge-url", url or judge_url),
                ("--key-env", given["backend.key_env"], "--url", url),
                ("--tokenizer", given["backend.tokenizer"], "--url", url),
                ("--judge-model", given["judge.model"], "--judge", judge),
                ("--judge-url", judge_url, "--judge", judge),
                ("--judge-text-only", given["judge.text_only"], "--judge", judge),
                ("--judge-key-env", given["judge.key_env"], "--judge", judge),
                ("--unsafe", given["unsafe"], "--allow-code", given["allow_code"]),
            ]
        )
    if judge and annotations:
        raise UserError("--judge has no effect beside --annotations; give one of them")
    if url and given["backend.kind"] == "vllm":
        raise UserError("--backend vllm has no effect beside --url; leave one of them out")
    if url and given["backend.device"]:
        raise UserError("--device has no effect beside --url; leave it out")
    if (judge or annotations) and benchmarks and not {"alpaca_eval", "tulu3"} & set(benchmarks):
        option = "--judge" if judge else "--annotations"
        raise UserError(f"{option} has no effect without --benchmark alpaca_eval")


def _refuse_idle(options: list[tuple[str, object, str, object]]) -> None:
    """(option, value, what it needs, whether that is given): an option that changes nothing is a
    misunderstanding, and is said to be one rather than ignored."""
    from deltalearn.errors import UserError

    for name, value, needed, given in options:
        if value is not None and value is not False and not given:
            raise UserError(f"{name} has no effect without {needed}; leave it out")
