"""The command line: thin commands, no logic, nothing heavy imported before it is needed."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deltalearn.cli import answers, evaluation, scores
from deltalearn.cli.settings import (
    HELP,
    LazyCommands,
    Recipe,
    RunPlace,
    Setting,
    Template,
    settings_of_options,
    settings_of_recipe,
)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, under a name that the command-line library does not swallow silently.

    Attributes:
        number: The signal.
    """

    def __init__(self, error: KeyboardInterrupt) -> None:
        super().__init__(*error.args)
        self.number = getattr(error, "number", signal.SIGINT)


class _Commands(LazyCommands):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # its text says where a run stands, if anything
            raise Interrupted(error) from None


app = typer.Typer(
    cls=_Commands,
    context_settings=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Delta learning: prompts and two weak language models in, a stronger student out.",
)
lab_app = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, help="The embedded family of tiny models."
)
app.add_typer(lab_app, name="lab")
app.command()(answers.generate)
app.command()(answers.pairs)
app.command()(evaluation.evaluate)
app.command()(scores.compare)
app.add_typer(answers.responses, name="responses")

EXIT_USER_ERROR = 2
EXIT_SIGNAL = 128  # and the number of the signal: 130 after Ctrl-C, 143 after SIGTERM


def _version(value: bool) -> None:
    if value:
        from deltalearn import __version__

        typer.echo(f"deltalearn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@settings_of_options(
    "deltalearn.pipeline.run_options:RunOptions", "deltalearn.pipeline.run_options:Rates"
)
def run(
    settings: list[Any],
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    set_: Setting = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what every stage would take, and stop.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Look for all that would stop it later, and stop.")
    ] = False,
) -> None:
    """Run the whole pipeline of a recipe; run it again to resume."""
    from deltalearn.pipeline.run_options import STAGES
    from deltalearn.recipe import load_recipe

    options, rates = settings
    options.check(rates, dry_run)
    loaded = load_recipe(recipe, set_ or ())
    if check:
        from deltalearn.pipeline.first_look import check_run

        typer.echo(check_run(loaded, options))
        return
    if dry_run:
        from deltalearn.pipeline.run_estimate import estimate_run

        typer.echo(estimate_run(loaded, options, rates))
        return
    from deltalearn.pipeline.run import run_recipe

    directory = run_recipe(loaded, options)
    if directory is None:  # one of several processes, and not the one that speaks
        return
    if not directory.done_now:
        typer.echo(f"{directory.path}: everything is done already, nothing to do")
    answers.say_errors(directory)
    if options.until == STAGES[-1]:
        from deltalearn.report.terminal import print_summary

        print_summary(directory.path)


@app.command()
@settings_of_recipe(
    {
        "student.path": "--student",
        "pairs.source": "--pairs",
        "pairs.split": "--split",
        "pairs.prompt_column": "--prompt-column",
        "pairs.chosen_column": "--chosen-column",
        "pairs.rejected_column": "--rejected-column",
        "pairs.ignore_columns": "--ignore-column NAME",
        "pairs.chat_template": "--chat-template",
        "tune.max_pairs": "--limit",
        "tune.method": "--method",
        "tune.lr": "--lr",
        "tune.beta": "--beta",
        "tune.batch_size": "--batch-size",
        "tune.steps": "--steps",
        "tune.epochs": "--epochs",
        "tune.max_length": "--max-length",
        "tune.truncation": "--truncation",
        "tune.token_budget": "--token-budget",
        "tune.layout": "--layout",
        "tune.attention": "--attention",
        "tune.gradient_checkpointing": "--gradient-checkpointing/--no-gradient-checkpointing",
        "tune.compile": "--compile/--no-compile",
        "tune.lora.r": "--lora R",
        "tune.shard": "--shard/--no-shard",
        "tune.eval_pairs": "--eval-pairs",
        "tune.tracker": "--tracker",
        "device": "--device",
        "dtype": "--dtype",
    }
)
def tune(
    settings: dict[str, Any],
    recipe: Recipe = None,
    template: Template = None,
    out: RunPlace = None,
    seed: Annotated[int | None, typer.Option(help="Of training. [default: 0]")] = None,
    set_: Setting = None,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of reference log-probs; default OUT/reference.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Let changed settings start over in OUT.")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE", help="Questions to look for among the prompts: tulu3, q.jsonl."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Of benchmarks; default $DELTALEARN_DATA_DIR.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show two pairs and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan, tokens and memory, and stop.")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option(help="Of a GPU; a dry run then shows hours.")
    ] = None,
) -> None:
    """Tune a model on pairs that you have; run it again to resume."""
    from deltalearn.pipeline.tune import run_tune
    from deltalearn.pipeline.tune_preview import check_modes, preview_pairs, report_dry_run
    from deltalearn.recipe import TUNE, load_recipe
    from deltalearn.recipe.template import given_arguments
    from deltalearn.util.distributed import is_first_process

    asked: dict[str, Any] = {"against": against or (), "data_dir": data_dir}
    own: dict[str, Any] = {"reference": reference, "update": update}
    check_modes(preview=preview, dry_run=dry_run, tflops=tflops, **own, **asked)
    settings["seeds"] = None if seed is None else [seed]
    settings |= given_arguments(template or [], "student")
    loaded = load_recipe(recipe, set_ or (), command=TUNE, options=settings)
    if not (preview or dry_run):
        run_tune(loaded, out, **own, **asked)
    elif is_first_process():
        typer.echo(
            preview_pairs(loaded) if preview else report_dry_run(loaded, tflops, out, **asked)
        )


@app.command()
def recipe(
    section: Annotated[str | None, typer.Argument(help="One of its sections: tune.")] = None,
) -> None:
    """Show every key of a recipe: what it may be, its default, what it does."""
    from deltalearn.errors import UserError
    from deltalearn.recipe.reference import reference, section_names
    from deltalearn.util.text_format import did_you_mean

    names = section_names()
    if section is not None and section not in names:
        near = did_you_mean(section, names)
        raise UserError(f"{section}: no such section; there are {', '.join(names)}{near}")
    typer.echo(reference(section), nl=False)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="A run directory with finished scores.")],
) -> None:
    """Write report.html and summary.json of a run again."""
    from deltalearn.report import write_report
    from deltalearn.report.terminal import print_summary

    write_report(run_directory)
    print_summary(run_directory)


@app.command()
@settings_of_options(
    "deltalearn.theory.options:Options", flags={"errors": "--errors A,B,C", "as_json": "--json"}
)
def theory(settings: list[Any]) -> None:
    """Delta learning in logistic regression: closed form, a simulation, figures and a page."""
    from deltalearn.theory.run import run_theory

    run_theory(*settings)


@app.command()
@settings_of_options(
    "deltalearn.ladder.options:LadderOptions", flags={"noise": "--noise A,B", "bits": "--bits A,B"}
)
def ladder(
    settings: list[Any],
    model: Annotated[str, typer.Argument(help="A directory or hub id.")],
) -> None:
    """Make weaker siblings of a model: layers left out, rounded, noisy; measured in order."""
    from deltalearn.ladder.make import make_ladder
    from deltalearn.ladder.notes import print_ladder

    (options,) = settings
    print_ladder(make_ladder(model, options), options.out)


@lab_app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Where the rebuilt ladder goes.")] = Path("lab-ladder"),
    workers: Annotated[int, typer.Option(min=1, help="Models trained at the same time.")] = 2,
) -> None:
    """Train the lab's models from scratch and compare them with the shipped ones."""
    from deltalearn.lab.pretrain import compare_with_shipped, pretrain_ladder

    manifest = pretrain_ladder(out, workers=workers)
    typer.echo(compare_with_shipped(manifest))
    typer.echo(f"written to {out}")
    if not manifest["ordered"]:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: user errors and full disks end with one message and exit code 2."""
    # Tokenizers would warn about forks and use threads that the lab's tiny texts do not need.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait asleep instead of spinning: a tenth slower with tiny models on an idle
    # machine, seven times faster where something else keeps a core busy. Read by torch's import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # pydantic would read every installed distribution to look for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from deltalearn.errors import UserError, is_disk_full, place_fault
    from deltalearn.util.malloc import keep_freed_memory
    from deltalearn.util.quiet import quiet_libraries
    from deltalearn.util.signals import interrupt_on_sigterm

    keep_freed_memory()
    quiet_libraries()
    interrupt_on_sigterm()

    try:
        app()
    except UserError as error:
        _complain(f"error: {error}")
        sys.exit(EXIT_USER_ERROR)
    except Interrupted as error:
        # All is saved; another press while Python ends must not change how it ended.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        _complain(f"\n{str(error) or 'interrupted'}; run the same command again to resume")
        sys.exit(EXIT_SIGNAL + error.number)
    except Exception as error:
        if fault := place_fault(error):
            _complain(f"error: {fault}")
            sys.exit(EXIT_USER_ERROR)
        if not is_disk_full(error):
            raise
        _complain(
            f"error: the disk is full ({error}). Nothing that was finished is lost: make room, "
            "then run the same command again to resume."
        )
        sys.exit(EXIT_USER_ERROR)


def _complain(text: str) -> None:
    """Print to standard error, once for all processes of a launcher."""
    from deltalearn.util.distributed import is_first_process

    if is_first_process():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
