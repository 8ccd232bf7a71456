"""The command that runs a benchmark suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deltalearn.pipeline.evaluate_options import Options

BESIDE_RECIPE = ("model", "recipe", "set_", "out", "name", "update")
NOTHING_RUN = 3  # exit code: every benchmark was left out


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="A directory or hub id; with --url its name there.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; default evals/<name of the model>.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model, in tables.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Benchmarks and settings of its section evaluate, own questions too."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one value of the recipe."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Of the suite (tulu3: its eleven) or of lm_eval; repeatable."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="test: as published. dev: a fifth, to choose on. held-out: the rest."),
    ] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many items of each benchmark, drawn by hash.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Local data (docs/evaluation.md); default: the hub.")
    ] = None,
    backend: Annotated[str, typer.Option(help="hf, vllm or openai.")] = "hf",
    url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable with the server's key.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Of the server's model: it is asked for completions then.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests in flight at a server or judge; default 16.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at a time, of hf.")] = 8,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens; default: the model's own.")
    ] = None,
    backend_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another argument of lm_eval's model."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Of AlpacaEval: an evaluator of alpaca_eval, or a file of one's own."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Who judges; default: whom the evaluator is published for.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Server of the judge; default: OpenAI's.")
    ] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Variable with the key of the judge's server.")
    ] = None,
    judge_text_only: Annotated[
        bool, typer.Option("--judge-text-only", help="The server gives no log-probabilities.")
    ] = False,
    annotations: Annotated[
        Path | None, typer.Option(help="Verdicts of AlpacaEval given before; nobody is asked.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run generated programs, in a sandbox.")
    ] = False,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Run them even where nothing isolates them.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Replace results of other settings in --out.")
    ] = False,
    ctx: typer.Context = None,  # type: ignore[assignment]  # typer gives it
) -> None:
    """Evaluate a model on the 11 benchmarks of Tülu 3; run it again to resume."""
    from deltalearn.errors import UserError
    from deltalearn.evaluate.harness.backends import CONCURRENCY, BackendOptions
    from deltalearn.pipeline.evaluate import evaluate as run
    from deltalearn.pipeline.evaluate_options import DEFAULT, Options, expanded
    from deltalearn.pipeline.judge import JudgeOptions
    from deltalearn.recipe.load import parse_override

    if model is None:
        raise UserError("give a model: a directory, a hub id, or a server's name of it")
    shown = name or model.rstrip("/").rpartition("/")[2]
    if recipe is not None:
        _refuse_beside_recipe(ctx)
        options = _by_recipe(recipe, set_ or [], model)
        options = replace(
            options, out=out or Path("evals") / shown, name=shown, update=update, say=typer.echo
        )
        if not run(options)["benchmarks"]:
            raise typer.Exit(NOTHING_RUN)
        return
    _refuse_idle(
        [
            ("--set", set_, "--recipe", recipe),
            ("--concurrency", concurrency, "--url or --judge-url", url or judge_url),
            ("--key-env", key_env, "--url", url),
            ("--tokenizer", tokenizer, "--url", url),
            ("--judge-model", judge_model, "--judge", judge),
            ("--judge-url", judge_url, "--judge", judge),
            ("--judge-text-only", judge_text_only, "--judge", judge),
            ("--judge-key-env", judge_key_env, "--judge", judge),
            ("--unsafe", unsafe, "--allow-code", allow_code),
        ]
    )
    if judge and annotations:
        raise UserError("--judge has no effect beside --annotations; give one of them")
    if url and backend == "vllm":
        raise UserError("--backend vllm has no effect beside --url; leave one of them out")
    if url and device:
        raise UserError("--device has no effect beside --url; leave it out")
    if (judge or annotations) and benchmark and "alpaca_eval" not in benchmark:
        given = "--judge" if judge else "--annotations"
        raise UserError(f"{given} has no effect without --benchmark alpaca_eval")
    pairs = (parse_override(text) for text in backend_option or [])
    options = Options(
        backend=BackendOptions(
            kind="openai" if url else backend,  # type: ignore[arg-type]
            model=model,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            context=context,
            url=url,
            key_env=key_env,
            concurrency=concurrency or CONCURRENCY,
            tokenizer=tokenizer,
            arguments={".".join(keys): value for keys, value in pairs},
        ),
        out=out or Path("evals") / shown,
        name=shown,
        benchmarks=expanded(benchmark or DEFAULT),
        split=split,
        limit=limit,
        data_dir=data_dir,
        judge=JudgeOptions(
            evaluator=judge,
            model=judge_model,
            url=judge_url,
            key_env=judge_key_env,
            concurrency=concurrency or CONCURRENCY,
            text_only=judge_text_only,
            annotations=annotations,
        ),
        allow_code=allow_code,
        unsafe=unsafe,
        update=update,
        say=typer.echo,
    )
    if not run(options)["benchmarks"]:
        raise typer.Exit(NOTHING_RUN)


def _by_recipe(recipe: str, overrides: list[str], model: str) -> Options:
    from deltalearn.pipeline.evaluate_options import options_of
    from deltalearn.recipe import EVALUATE, load_recipe

    found = load_recipe(recipe, overrides, command=EVALUATE).recipe
    assert found.evaluate is not None
    where = {"device": found.device, "dtype": found.dtype}
    return options_of(found.evaluate, model, **where, out=Path(), name="")


def _refuse_beside_recipe(context: typer.Context) -> None:
    """UserError for an option whose value stands in the recipe."""
    from deltalearn.errors import UserError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in BESIDE_RECIPE:
            raise UserError(
                f"{parameter.opts[0]} has no effect beside --recipe; give it there, or by --set"
            )


def _refuse_idle(options: list[tuple[str, object, str, object]]) -> None:
    """(option, value, what it needs, whether that is given): an option that changes nothing is a
    misunderstanding, and is said to be one rather than ignored."""
    from deltalearn.errors import UserError

    for name, value, needed, given in options:
        if value is not None and value is not False and not given:
            raise UserError(f"{name} has no effect without {needed}; leave it out")
