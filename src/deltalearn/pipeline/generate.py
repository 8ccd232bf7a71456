"""The stage in which models answer, and `deltalearn generate`, which is that stage by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.pipeline.context import Context
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.generator import Generator, asked_models
from deltalearn.pipeline.manifest import AnswersLeft
from deltalearn.pipeline.prompts import PROMPTS, PromptFile, prompts_stage
from deltalearn.pipeline.stage import Say, Stage
from deltalearn.recipe import LoadedRecipe
from deltalearn.records import Request
from deltalearn.util.files import digest

if TYPE_CHECKING:
    from deltalearn.responses.store import ResponseStore

STORE = "responses.sqlite"
STORE_FILES = (STORE, f"{STORE}-wal", f"{STORE}-shm")


def generate_stages(context: Context) -> None:
    """Have every needed model answer the prompts, which must be there, into responses.sqlite."""
    for model in asked_models(context.recipe):
        answers = Answers(context, context.generators[model])
        answers.review()
        context.run(answers.stage)
        # What is made of answers follows them, however they came into the store.
        context.keys[answers.stage.name] = digest([answers.stage.key, answers.content])


@dataclass(frozen=True)
class Answers:
    """The answers of one model: the stage that asks for them, and what it has left in the store."""

    context: Context
    generator: Generator

    @cached_property
    def stage(self) -> Stage:
        """The stage that asks for them."""
        settings = self.generator.settings
        inputs = {
            "prompts": self.context.keys["prompts"],
            "model": self.generator.identity,
            "how": settings.key(),
            "samples": settings.samples,
        }
        name = f"generate/{self.generator.name}"
        return Stage(name, inputs, (STORE,), self.work, costly=(STORE,))

    @property
    def requests(self) -> Iterable[Request]:
        """All requests of the model."""
        kept = PromptFile(self.context.path(PROMPTS))
        return self.generator.requests(kept, self.context.directory.counts("prompts")["prompts"])

    def review(self) -> None:
        """Reopen the stage if it is done and the store has not what it left, or errors to retry.

        Answers may have been forgotten, merged or imported meanwhile.
        """
        directory, name = self.context.directory, self.stage.name
        if not directory.is_done(self.stage):
            return
        errors = directory.counts(name)["errors"]
        if (self.context.retry_errors and errors) or not self._is_as_left():
            directory.reopen(name)

    def _is_as_left(self) -> bool:
        from deltalearn.generate.stage import fingerprint
        from deltalearn.responses.store import ResponseStore

        directory, name = self.context.directory, self.stage.name
        left = directory.manifest.answers.get(name)
        with ResponseStore(self.context.path(STORE), existing=True) as store:
            mark = store.version()
            if left is None or mark != left.mark:  # or else nobody has stored or deleted anything
                if left is None or fingerprint(store, self.requests) != left.fingerprint:
                    return False
                self._call(store)
                directory.manifest.answers[name] = replace(left, mark=mark)
                directory.save()
        return True

    def _call(self, store: ResponseStore) -> None:
        generator = self.generator
        store.name_model(generator.identity, generator.name, generator.settings.key())

    @property
    def content(self) -> str:
        """Hash of the answers that the stage left."""
        return self.context.directory.manifest.answers[self.stage.name].fingerprint

    def work(self) -> dict[str, Any]:
        """Ask what the store does not have, and return counts."""
        from deltalearn.generate import generate
        from deltalearn.generate.stage import fingerprint

        requests, generator = self.requests, self.generator
        with _store(self.context.path(STORE)) as store:
            self._call(store)
            before = store.version()
            counts = generate(
                store,
                requests,
                lambda: generator.engine(self.context.say),
                title=generator.name,
                prices=generator.prices,
                retry_errors=self.context.retry_errors,
            )
            left, mark = self.context.directory.manifest.answers, store.version()
            for name, other in left.items():
                if other.mark == before:  # what came since is not another stage's
                    left[name] = replace(other, mark=mark)
            left[self.stage.name] = AnswersLeft(mark, fingerprint(store, requests))
        return counts


@contextmanager
def _store(path: Path) -> Iterator[ResponseStore]:
    """The store, made if need be, and removed if it is left empty-handed by an error."""
    from deltalearn.responses.store import ResponseStore

    empty = False
    try:
        with ResponseStore(path) as store:
            try:
                yield store
            except BaseException:
                empty = store.count() == 0
                raise
    finally:
        if empty:
            for name in STORE_FILES:
                path.with_name(name).unlink(missing_ok=True)


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
        if not directory.done_now:
            say(f"{out}: everything is answered already, nothing to do")
        return directory.errors()
