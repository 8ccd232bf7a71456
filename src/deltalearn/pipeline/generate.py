"""The stage in which models answer, and `deltalearn generate`, which is that stage by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deltalearn.errors import UserError
from deltalearn.generate.stage import fingerprint, generate
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.generator import Generator, asked_models
from deltalearn.pipeline.manifest import AnswersLeft
from deltalearn.pipeline.prompts import PROMPTS, PromptFile, prompts_stage
from deltalearn.pipeline.side_by_side import do_side_by_side
from deltalearn.pipeline.stage import Doing, Job, Say, Stage
from deltalearn.recipe import LoadedRecipe
from deltalearn.records import Request
from deltalearn.responses.store import ResponseStore
from deltalearn.util.files import digest

STORE = "responses.sqlite"
STORE_FILES = (STORE, f"{STORE}-wal", f"{STORE}-shm")


def generate_stages(context: Context, at_once: int = 1) -> None:
    """Have every needed model answer the prompts, which must be there, into responses.sqlite.

    Args:
        context: The run.
        at_once: Models that answer at a time where transformers runs them, each in a process of its
            own. The other engines spread one model over devices and machines themselves.
    """
    asked = [Answers(context, context.generators[model]) for model in asked_models(context.recipe)]
    with _not_left_empty(context.directory):
        done = _side_by_side(context, asked, at_once) if at_once > 1 else set()
        for answers in asked:
            if answers.name not in done:
                answers.review()
                context.run(answers.stage)
            elif not answers.are_as_left():  # others have stored theirs since
                raise RuntimeError(f"{answers.name}: answers changed while others answered")
            # What is made of answers follows them, however they came into the store.
            context.keys[answers.name] = digest([answers.stage.key, answers.content])


def _side_by_side(context: Context, asked: Iterable[Answers], at_once: int) -> AbstractSet[str]:
    """Let models that are here answer at a time; names of the stages that are done by that.

    Who repeats another is not among them: it finds those answers in the store.
    """
    distinct: dict[Any, Answers] = {}
    for answers in asked:
        generator = answers.generator
        if generator.files is not None and generator.spec.engine == "transformers":
            distinct.setdefault((generator.identity, generator.settings.key()), answers)
    if len(distinct) < 2:
        return set()
    ResponseStore(context.path(STORE)).close()  # SQLite does not wait to change modes
    by_name = {answers.generator.name: answers for answers in distinct.values()}
    for answers in by_name.values():
        answers.review()
    jobs = [answers.job for answers in by_name.values()]
    do_side_by_side(
        context, jobs, lambda job, asking: by_name[job.generator.name].by(asking), at_once
    )
    return {answers.name for answers in by_name.values()}


class AskJob(Job):
    """One model to ask.

    Attributes:
        generator: The model; where it is placed is not handed on.
        prompts: The file of a run.
        number: How many prompts there are.
        store: Where the answers go.
    """

    kind: Literal["generate"] = "generate"
    generator: Generator
    prompts: Path
    number: int
    store: Path
    retry_errors: bool

    def begin(self, say: Say) -> Asking:
        """Ask from this process."""
        from deltalearn.lm.load import place

        here = replace(self.generator, placement=lambda: place(self.device, self.dtype))
        return Asking(self.model_copy(update={"generator": here}), say)

    @property
    def requests(self) -> Iterable[Request]:
        """All that the model is asked."""
        return self.generator.requests(PromptFile(self.prompts), self.number)


@dataclass
class Asking:
    """The work of one job."""

    job: AskJob
    say: Say

    def prepare(self) -> None:
        """Nothing: that the models and prompts are there is known before a run begins."""

    def work(self) -> dict[str, Any]:
        """Ask what the store does not have; counts."""
        job, generator = self.job, self.job.generator
        with ResponseStore(job.store) as store:
            store.name_model(generator.identity, generator.name, generator.settings.key())
            return generate(
                store,
                job.requests,
                lambda: generator.engine(self.say),
                title=generator.name,
                prices=generator.prices,
                retry_errors=job.retry_errors,
            )


@dataclass(frozen=True)
class Answers:
    """The answers of one model: the stage that asks for them, and what it has left in the store."""

    context: Context
    generator: Generator

    @property
    def name(self) -> str:
        """Name of the stage."""
        return f"generate/{self.generator.name}"

    @cached_property
    def job(self) -> AskJob:
        """The job that asks what is missing, for this process or another."""
        context, generator = self.context, self.generator
        return AskJob(
            title=f"generate {generator.name}",
            generator=generator,
            prompts=context.path(PROMPTS),
            number=context.directory.counts("prompts")["prompts"],
            store=context.path(STORE),
            retry_errors=context.retry_errors,
            device=context.recipe.device,
            dtype=context.recipe.dtype,
        )

    @property
    def requests(self) -> Iterable[Request]:
        """All that the model is asked."""
        return self.job.requests

    @cached_property
    def stage(self) -> Stage:
        """The stage, in this process."""
        return self.by(Asking(self.job, self.context.say))

    def by(self, asking: Doing) -> Stage:
        """The stage with somebody at work: what identifies the answers, and how to get them."""
        settings = self.generator.settings
        inputs = {
            "prompts": self.context.keys["prompts"],
            "model": self.generator.identity,
            "how": settings.key(),
            "samples": settings.samples,
        }

        def work() -> dict[str, Any]:
            with ResponseStore(self.job.store) as store:
                before = store.version()
            counts = asking.work()
            with ResponseStore(self.job.store, existing=True) as store:
                left = AnswersLeft(store.version(), fingerprint(store, self.requests))
            self.context.directory.leave_answers(self.name, left, before)
            return counts

        return Stage(self.name, inputs, (STORE,), work, asking.prepare, costly=(STORE,))

    def review(self) -> None:
        """Reopen the stage if it is done and the store has not what it left, or errors to retry.

        Answers may have been forgotten, merged or imported meanwhile.
        """
        directory, name = self.context.directory, self.stage.name
        if not directory.is_done(self.stage):
            return
        errors = directory.counts(name)["errors"]
        if (self.context.retry_errors and errors) or not self.are_as_left():
            directory.reopen(name)

    def are_as_left(self) -> bool:
        """Tell whether the store has what the stage left; note the store's mark if so."""
        directory, name, generator = self.context.directory, self.stage.name, self.generator
        left = directory.manifest.answers.get(name)
        with ResponseStore(self.context.path(STORE), existing=True) as store:
            mark = store.version()
            if left is None or mark != left.mark:  # or else nobody has stored or deleted anything
                if left is None or fingerprint(store, self.requests) != left.fingerprint:
                    return False
                store.name_model(generator.identity, generator.name, generator.settings.key())
                directory.manifest.answers[name] = replace(left, mark=mark)
                directory.save()
        return True

    @property
    def content(self) -> str:
        """Hash of the answers that the stage left."""
        return self.context.directory.manifest.answers[self.stage.name].fingerprint


@contextmanager
def _not_left_empty(directory: RunDirectory) -> Iterator[None]:
    """Remove the store if an error has left nothing in it, and forget who was to fill it.

    A record would make mending a mistake in the settings look like another run.
    """
    path = directory.path / STORE
    try:
        yield
    except BaseException:
        with suppress(UserError, sqlite3.Error, OSError):  # the first error is the one to tell
            with ResponseStore(path, existing=True) as store:
                empty = store.count() == 0
            if empty:
                for name in STORE_FILES:
                    path.with_name(name).unlink(missing_ok=True)
                directory.forget("generate/")
        raise


def _what_comes_next(out: Path, models: Sequence[str]) -> str:
    """Where the answers are, and the command that goes on with them."""
    file = out / STORE
    if len(models) < 2:
        return f"answers: {file}; next: `deltalearn responses export {file} answers.jsonl`"
    return (
        f"answers: {file}; next: `deltalearn pairs {file} --chosen {models[0]} --rejected "
        f"{models[1]} --out {out / 'pairs.parquet'}`"
    )


def run_generate(
    loaded: LoadedRecipe,
    out: Path | None = None,
    *,
    update: bool = False,
    retry_errors: bool = False,
    say: Say = print,
) -> int:
    """Let every model answer every prompt.

    Run it again to resume: nothing is asked twice, whatever was added.

    Args:
        loaded: A recipe with models and prompts.
        out: Where responses.sqlite goes; default runs/<name>.
        update: Let changed settings go on in the same directory.
        retry_errors: Ask again what ended in errors.
        say: Gets a line for each stage that worked, and for errors.

    Returns:
        The number of requests that ended in errors.

    Raises:
        UserError: If `out` holds other settings, and not `update`.
    """
    recipe = loaded.recipe
    out = out or Path("runs") / recipe.name
    with RunDirectory(out, loaded, update=update, may_hold=STORE_FILES) as directory:
        context = Context(recipe, directory, say, update=update, retry_errors=retry_errors)
        prompts = prompts_stage(context)
        context.generators  # noqa: B018 (a model that is not there is told before work begins)
        context.run(prompts)
        generate_stages(context)
        for model in asked_models(recipe):
            counts = directory.counts(f"generate/{model}")
            if counts["errors"]:
                say(
                    f"  {model}: {counts['errors']:,} of {counts['requests']:,} requests ended in "
                    f"errors; see `deltalearn responses errors {out / STORE}`, and ask them again "
                    "with --retry-errors"
                )
        if directory.done_now:
            say(_what_comes_next(out, asked_models(recipe)))
        else:
            say(f"{out}: everything is answered already, nothing to do")
        return directory.errors()
