"""The stage in which models answer, and `deltalearn generate`, which is that stage by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.directory import RunDirectory, stage_line
from deltalearn.pipeline.generator import Respondent, respondents
from deltalearn.pipeline.prompts import PromptFile, read_and_keep_prompts
from deltalearn.recipe.generate_file import GenerateRecipe, LoadedGenerate
from deltalearn.records import Request
from deltalearn.util.files import digest

if TYPE_CHECKING:
    from deltalearn.responses.store import ResponseStore

Say = Callable[[str], None]


STORE = "responses.sqlite"
STORE_FILES = (STORE, f"{STORE}-wal", f"{STORE}-shm")


@dataclass(frozen=True)
class AnswerStage:
    """The stage in which one model answers: what identifies it, and its work.

    prompts_key: of the stage that left prompts.jsonl. prompts: how many there are.
    """

    respondent: Respondent
    directory: RunDirectory
    prompts_key: str
    prompts: int
    retry_errors: bool
    say: Say

    @property
    def name(self) -> str:
        """As the manifest has it."""
        return f"generate/{self.respondent.name}"

    @property
    def requests(self) -> Iterable[Request]:
        """All that the model is asked."""
        kept = PromptFile(self.directory.path / "prompts.jsonl")
        return self.respondent.requests(kept, self.prompts)

    def inputs(self) -> dict[str, Any]:
        """What the key is made of."""
        settings = self.respondent.settings
        return {
            "prompts": self.prompts_key,
            "model": self.respondent.identity,
            "how": settings.key(),
            "samples": settings.samples,
        }

    def review(self) -> None:
        """Reopen the stage if it is done and the store has not what it left, or errors to retry.

        Answers may have been forgotten, merged or imported meanwhile.
        """
        directory = self.directory
        if not directory.is_done(self.name, digest(self.inputs())):
            return
        errors = directory.counts(self.name)["errors"]
        if (self.retry_errors and errors) or not self._is_as_left():
            directory.reopen(self.name)

    def _is_as_left(self) -> bool:
        from deltalearn.generate.stage import fingerprint
        from deltalearn.responses.store import ResponseStore

        left = self.directory.manifest["answers"].get(self.name, {})
        with ResponseStore(self.directory.path / STORE, existing=True) as store:
            mark = store.version()
            if mark != left.get("mark"):  # or else nobody has stored or deleted anything
                if fingerprint(store, self.requests) != left.get("fingerprint"):
                    return False
                self._call(store)
                left["mark"] = mark
                self.directory.save()
        return True

    def _call(self, store: ResponseStore) -> None:
        respondent = self.respondent
        store.name_model(respondent.identity, respondent.name, respondent.settings.key())

    @property
    def content(self) -> str:
        """Hash of the answers that the stage left."""
        return self.directory.manifest["answers"][self.name]["fingerprint"]

    def work(self) -> dict[str, Any]:
        """Ask what the store does not have; counts."""
        from deltalearn.generate import generate
        from deltalearn.generate.stage import fingerprint
        from deltalearn.responses.store import ResponseStore

        requests = self.requests
        with ResponseStore(self.directory.path / STORE) as store:
            self._call(store)
            before = store.version()
            counts = generate(
                store,
                requests,
                lambda: self.respondent.engine(self.say),
                title=self.respondent.name,
                prices=self.respondent.prices,
                retry_errors=self.retry_errors,
            )
            left, mark = self.directory.manifest["answers"], store.version()
            for other in left.values():
                if other["mark"] == before:  # what came since is not another stage's
                    other["mark"] = mark
            left[self.name] = {"mark": mark, "fingerprint": fingerprint(store, requests)}
        return counts


def run_generate(
    loaded: LoadedGenerate,
    out: Path | None = None,
    *,
    update: bool = False,
    retry_errors: bool = False,
    say: Say = print,
) -> int:
    """Let every model answer every prompt, into `out`/responses.sqlite; how many errors there are.

    Run it again to resume: nothing is asked twice, whatever was added. Raises UserError if `out`
    holds other settings and not `update`.
    """
    recipe = loaded.recipe
    out = out or Path("runs") / recipe.name
    directory = RunDirectory(out, loaded, update=update, may_hold=STORE_FILES)
    try:
        return _Generating(recipe, directory, retry_errors, say).run()
    finally:
        directory.close()


@dataclass
class _Generating:
    """One run of the command."""

    recipe: GenerateRecipe
    directory: RunDirectory
    retry_errors: bool
    say: Say

    def run(self) -> int:
        """Prompts, then one model after the other."""
        prompts = self.stage("prompts", self.prompts_inputs(), self.read_prompts)
        errors = 0
        for respondent in respondents(self.recipe, self.directory.manifest["models"]):
            errors += self.answer(respondent, prompts["prompts"])
        if not self.directory.done_now:
            self.say(f"{self.directory.path}: everything is answered already, nothing to do")
        return errors

    def stage(self, name: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        outputs = ["prompts.jsonl" if name == "prompts" else STORE]
        if self.directory.stage(name, digest(inputs), outputs, work):
            record = self.directory.manifest["stages"][name]
            self.say(stage_line(name, record))
        return self.directory.counts(name)

    def prompts_inputs(self) -> Any:
        spec = self.recipe.prompts
        return {"spec": spec.model_dump(), "source": source_digest(spec.source)}

    def read_prompts(self) -> dict[str, Any]:
        return read_and_keep_prompts(self.recipe.prompts, self.directory.path, self.say)

    def answer(self, respondent: Respondent, prompts: int) -> int:
        """All answers of one model; how many of them are errors."""
        stage = AnswerStage(
            respondent,
            self.directory,
            digest(self.prompts_inputs()),
            prompts,
            self.retry_errors,
            self.say,
        )
        self.directory.manifest["models"][respondent.name] = respondent.record
        stage.review()
        counts = self.stage(stage.name, stage.inputs(), stage.work)
        if counts["errors"]:
            store = self.directory.path / STORE
            self.say(
                f"  {respondent.name}: {counts['errors']:,} of {counts['requests']:,} requests "
                f"ended in errors; see `deltalearn responses errors {store}`, and ask them again "
                "with --retry-errors"
            )
        return counts["errors"]
