"""Commands about answers: generate them, look after their store, make pairs of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltalearn.cli.settings import (
    LazyCommands,
    RunPlace,
    Setting,
    Template,
    settings_of_recipe,
)

if TYPE_CHECKING:
    from deltalearn.pipeline.directory import RunDirectory
    from deltalearn.pipeline.run_options import RunOptions

SUFFIXES = (".sqlite", ".db")  # of a store that is a file by itself
NUMBERS = {"responses": 0, "prompts": 4, "truncated": 2, "errors": 1, "tokens": 3}
SHOWN = 12  # characters of a model's identity
EXIT_WITH_ERRORS = 3  # everything was asked, and some requests ended in errors

responses = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, help="Look after a store of answers."
)

Store = Annotated[Path, typer.Argument(help="responses.sqlite, or the directory it is in.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model's; repeatable.")
]


@settings_of_recipe(
    {
        "prompts.source": "--prompts",
        "prompts.split": "--split",
        "prompts.column": "--prompt-column",
        "prompts.ignore_columns": "--ignore-column NAME",
        "prompts.limit": "--limit",
        "models.*.server.url": "--url",
        "models.*.server.key_env": "--key-env",
        "models.*.server.concurrency": "--concurrency",
        "generate.engine": "--engine",
        "generate.temperature": "--temperature",
        "generate.top_p": "--top-p",
        "generate.max_tokens": "--max-tokens",
        "generate.samples": "--samples",
        "generate.seed": "--seed",
        "generate.system": "--system",
        "device": "--device",
        "dtype": "--dtype",
    }
)
def generate(
    settings: dict[str, Any],
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe, file or name; options win over it.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A model that answers; repeat for a ladder."),
    ] = None,
    template: Template = None,
    out: RunPlace = None,
    set_: Setting = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what ended in an error.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Let changed settings go on in the same directory.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count requests, tokens and cost, and stop.")
    ] = False,
) -> None:
    """Let models answer prompts; run it again to resume. Exit code 3 if some ended in errors."""
    from deltalearn.pipeline.generate import run_generate
    from deltalearn.pipeline.generate_estimate import dry_run as report_dry_run
    from deltalearn.pipeline.run_options import RunOptions
    from deltalearn.recipe import GENERATE, load_recipe
    from deltalearn.recipe.load import read_values
    from deltalearn.recipe.options import named_models, refuse_local
    from deltalearn.recipe.template import given_arguments

    settings |= given_arguments(template or [], "models.*")
    if recipe is not None and "arms" in read_values(recipe)[1]:
        options = RunOptions(out=out, update=update, until="generate", retry_errors=retry_errors)
        _of_whole_recipe(recipe, model, settings, set_, options, dry=dry_run)
        return
    refuse_local(settings)
    settings = named_models(model or []) | settings
    loaded = load_recipe(recipe, set_ or (), command=GENERATE, options=settings)
    if dry_run:
        typer.echo(report_dry_run(loaded, out, retry_errors=retry_errors))
    elif run_generate(loaded, out, update=update, retry_errors=retry_errors):
        raise typer.Exit(EXIT_WITH_ERRORS)


def _of_whole_recipe(
    recipe: str,
    models: list[str] | None,
    settings: dict[str, object],
    set_: list[str] | None,
    options: RunOptions,
    *,
    dry: bool,
) -> None:
    """The generate stage of a recipe of `run`, in that run's directory."""
    from deltalearn.errors import UserError
    from deltalearn.pipeline.generate_estimate import dry_run
    from deltalearn.pipeline.run import run_recipe
    from deltalearn.recipe import load_recipe

    if models:
        raise UserError(f"{recipe}: it names its models already; change them with --set models.X=")
    for key, value in settings.items():
        if key.startswith("models.*.") and value is not None:
            raise UserError(
                f"{recipe}: that belongs to one model: --set models.NAME{key[8:]}={value}"
            )
    loaded = load_recipe(recipe, set_ or (), options=settings)
    if dry:
        typer.echo(dry_run(loaded, options.out, retry_errors=options.retry_errors))
        return
    directory = run_recipe(loaded, options)
    if directory is None:  # one of several processes, and not the one that speaks
        return
    if not directory.done_now:
        typer.echo(f"{directory.path}: everything is answered already, nothing to do")
    if say_errors(directory):
        raise typer.Exit(EXIT_WITH_ERRORS)


def say_errors(directory: RunDirectory) -> bool:
    """Tell of requests of a run that ended in errors; whether there are any."""
    from deltalearn.util.text_format import plural

    if failed := directory.errors():
        typer.echo(
            f"{plural(failed, 'request')} ended in errors and made no pair: see `deltalearn "
            f"responses errors {directory.path}`; ask again with --retry-errors"
        )
    return failed > 0


@settings_of_recipe(
    {
        "pairs.truncated": "--truncated",
        "pairs.reasoning": "--reasoning",
        "pairs.max_length_difference": "--max-length-difference",
    }
)
def pairs(
    settings: dict[str, Any],
    store: Store,
    chosen: Annotated[str, typer.Option(help="The model whose answers are preferred.")],
    rejected: Annotated[str, typer.Option(help="The model whose answers are not.")],
    out: Annotated[Path, typer.Option(help="A Parquet file in TRL's format.")],
    how: Annotated[
        str | None,
        typer.Option(
            "--settings", help="JSON, whole or a part: which answers, if of several kinds."
        ),
    ] = None,
) -> None:
    """Make preference pairs of two models' answers in a store."""
    from deltalearn.pipeline.pairs import write_pairs_of_store

    rules = {key.removeprefix("pairs."): v for key, v in settings.items() if v is not None}
    typer.echo(write_pairs_of_store(_path(store), chosen, rejected, out, how, **rules))


@responses.command("list")
def list_(store: Store) -> None:
    """List what is in a store: models, ways of asking them, numbers."""
    from deltalearn.cli.tables import print_rows
    from deltalearn.responses.maintenance import overview
    from deltalearn.util.terminal import Column

    with _open(store) as opened:
        rows = overview(opened)
    if not rows:
        typer.echo("no answers yet")
        return
    columns = (
        Column("model", number=False),
        Column("identity", number=False),
        *(Column(name, keep=keep) for name, keep in NUMBERS.items()),
        Column("engines", number=False, keep=5, fold=12),
        Column("settings", number=False, keep=1, fold=24),
    )
    print_rows([{**row, "identity": row["identity"][:SHOWN]} for row in rows], columns)


@responses.command()
def count(store: Store) -> None:
    """The number of answers, one a line: all, truncated, errors."""
    from deltalearn.responses.maintenance import overview

    with _open(store) as opened:
        rows = overview(opened)
    for name in ("responses", "truncated", "errors"):
        typer.echo(f"{name} {sum(row[name] for row in rows)}")


@responses.command()
def errors(store: Store) -> None:
    """List the kinds of errors there are, with an example of each."""
    from deltalearn.cli.tables import print_rows
    from deltalearn.responses.maintenance import faults
    from deltalearn.util.terminal import Column

    names = ("model", "kind", "count", "example")
    with _open(store) as opened:
        rows = [dict(zip(names, row, strict=True)) for row in faults(opened)]
    if not rows:
        typer.echo("no errors")
        return
    columns = [Column(name, number=name == "count") for name in names[:3]]
    print_rows(rows, [*columns, Column("example", number=False, fold=24)])


@responses.command()
def check(store: Store) -> None:
    """Check a store: SQLite's pages, and every key against what it stands for."""
    from deltalearn.responses.maintenance import check as check_store

    with _open(store) as opened:
        found = check_store(opened)
    for problem in found.problems:
        typer.echo(problem)
    if found.counts:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in found.counts.items())
        typer.echo(f"{found.rows:,} rows, NOT whole: {kinds}")
        sys.exit(1)
    typer.echo(f"{found.rows:,} rows, all whole")


@responses.command()
def export(
    store: Store,
    to: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file.")],
    model: Models = None,
) -> None:
    """Write answers to a file, a row each."""
    from deltalearn.responses.export import export as export_store

    with _open(store) as opened:
        typer.echo(f"{to}: {export_store(opened, to, model or []):,} rows")


@responses.command("import")
def import_(
    store: Annotated[Path, typer.Argument(help="A directory, or a file .sqlite; may be new.")],
    source: Annotated[str, typer.Argument(help="JSON, CSV, Parquet, a folder, or a hub id.")],
    column: Annotated[
        list[str] | None,
        typer.Option(help="A model's column of answers, for a ladder; repeatable."),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Of the model, where the file does not say.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a hub data set, or a folder with several; default train.")
    ] = None,
    ignore_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out a column that would change the question."),
    ] = None,
) -> None:
    """Take answers that others wrote: ladder columns, AlpacaEval, TRL, Argilla, distilabel."""
    from deltalearn.pipeline.lock import exclusive
    from deltalearn.responses.importer import import_responses
    from deltalearn.responses.store import ResponseStore

    path = _path(store)
    with exclusive(path.parent), ResponseStore(path) as opened:
        found = import_responses(
            opened, source, split=split, models=column or [], name=model_name,
            ignore_columns=ignore_column or (),
        )  # fmt: skip
    if found.files:
        typer.echo(found.files)
    models = ", ".join(f"{name} {n:,}" for name, n in found.models.items())
    typer.echo(f"{found.read:,} rows read, {found.added:,} answers added ({models or 'none new'})")
    for number, meaning in (
        (found.there, "were there already"),
        (found.assumed_ends, "had no finish reason and are taken to have ended by themselves"),
        (found.transcripts, "answers are to turns made of Human: and Assistant: text"),
        (found.skipped_count, "rows or cells had no answer to take"),
    ):
        if number:
            typer.echo(f"  {number:,} {meaning}")
    for line in found.skipped:
        typer.echo(f"    {line}")


@responses.command()
def merge(
    store: Store, other: Annotated[Path, typer.Argument(help="The store to take from.")]
) -> None:
    """Take over the answers of another store."""
    from deltalearn.pipeline.lock import exclusive
    from deltalearn.responses.maintenance import merge as merge_stores

    with exclusive(_path(store).parent), _open(store) as opened:
        done = merge_stores(opened, _path(other))
    typer.echo(
        f"{done.added:,} added, {done.mended:,} errors mended, {done.same:,} the same, "
        f"{done.different:,} answered otherwise here and kept so"
    )


@responses.command()
def forget(
    store: Store,
    model: Annotated[
        str, typer.Argument(help="Name of a model, or its identity as `responses list` shows it.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, for scripts.")] = False,
) -> None:
    """Delete the answers that a name stands for, and give back their room."""
    from deltalearn.errors import UserError
    from deltalearn.pipeline.lock import exclusive
    from deltalearn.responses.maintenance import forget_model, number_named

    with exclusive(_path(store).parent), _open(store) as opened:
        if not yes:
            number = number_named(opened, model)
            if not is_interactive():
                raise UserError(
                    f"{number:,} answers of {model} would be deleted, and nobody can be asked; "
                    "give --yes"
                )
            if not typer.confirm(f"Delete {number:,} answers of {model} for good?"):
                typer.echo("nothing deleted")
                return
        typer.echo(f"{forget_model(opened, model):,} answers of {model} deleted")


def is_interactive() -> bool:
    """True if there is somebody to ask."""
    return sys.stdin.isatty()


def _open(store: Path):
    from deltalearn.responses.store import ResponseStore

    return ResponseStore(_path(store), existing=True)


def _path(store: Path) -> Path:
    """The file: of a directory, and of a name that is not there and does not look like a file's."""
    is_file = store.is_file() or (store.suffix in SUFFIXES and not store.is_dir())
    return store if is_file else store / "responses.sqlite"
