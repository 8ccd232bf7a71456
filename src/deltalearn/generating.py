"""`deltalearn generate` and `deltalearn pairs`: answers and pairs without a student or arms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deltalearn.answering import (
    STORE,
    STORE_FILES,
    AnswerStage,
    Respondent,
    read_and_keep_prompts,
)
from deltalearn.errors import UserError
from deltalearn.files import digest
from deltalearn.recipe.generate_file import GenerateRecipe, LoadedGenerate
from deltalearn.recipe.load import OPTIONS, LoadedRecipe, explain
from deltalearn.recipe.schema import PairsSpec, PromptsSpec
from deltalearn.rundir import RunDirectory, counts_line, stage_line
from deltalearn.tables import source_digest

if TYPE_CHECKING:
    from deltalearn.lm.load import Placement

Say = Callable[[str], None]


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


def respondents(recipe: GenerateRecipe, known: dict[str, Any]) -> list[Respondent]:
    """The models of the recipe; `known` are a manifest's, with the commits it began with."""

    @cache
    def placement() -> Placement:
        from deltalearn.lm.load import place  # brings in torch, which a server does not need

        return place(recipe.device, recipe.dtype)

    found = []
    for name, model in recipe.models.items():
        before = known.get(name, {})
        pinned = before.get("commit") if before.get("path") == model.path else None
        found.append(Respondent(name, model, recipe.generate, placement, pinned))
    return found


def dry_run(loaded: LoadedGenerate, out: Path | None = None, *, retry_errors: bool = False) -> str:
    """What a run would ask: prompts, requests, what is there already, tokens, and what they cost.

    Prompt tokens are counted by a local model's own tokenizer on a sample of prompts, and guessed
    from the number of characters for a model behind a server.
    """
    recipe = loaded.recipe
    place = out or Path("runs") / recipe.name
    return _dry_run(recipe.prompts, respondents(recipe, {}), place, retry_errors)


def dry_run_of_recipe(
    loaded: LoadedRecipe, out: Path | None = None, *, retry_errors: bool = False
) -> str:
    """`dry_run` of the generate stage of a recipe of `deltalearn run`."""
    recipe = loaded.recipe
    asked = [
        Respondent(name, recipe.model(name), recipe.generate, _nowhere)
        for name in recipe.generators
    ]
    return _dry_run(recipe.prompts, asked, out or Path("runs") / recipe.name, retry_errors)


def _nowhere() -> Placement:
    raise AssertionError("a dry run loads no model")


def _dry_run(
    prompts: PromptsSpec, asked: Iterable[Respondent], out: Path, retry_errors: bool
) -> str:
    from deltalearn.generate.plan import outlook
    from deltalearn.prompts import read_prompts

    found = read_prompts(**prompts.model_dump())
    counts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in found.counts.items() if v)
    lines = [f"prompts: {counts}"]
    store = out / STORE
    for respondent in asked:
        requests = respondent.requests(found.prompts, len(found.prompts))
        lines += outlook(respondent, requests, store, retry_errors=retry_errors)
    return "\n".join(lines)


# -- deltalearn pairs ----------------------------------------------------------------------------


def write_pairs_of_store(
    store: Path,
    chosen: str,
    rejected: str,
    out: Path,
    settings: str | None = None,
    **rules: Any,
) -> str:
    """Pairs of two models' answers in `store`, into the Parquet file `out`; a line that counts.

    rules: as in the section `pairs` of a recipe.
    """
    from deltalearn.generate import ResponseStore, ladder_candidates
    from deltalearn.pairs import PairCounts, build_pairs, write_pairs

    try:
        spec = PairsSpec(**rules)
    except ValidationError as error:
        raise UserError(explain(OPTIONS, error, PairsSpec)) from error
    _check_settings(settings)
    if out.suffix != ".parquet":
        raise UserError(f"{out}: pairs are written to a .parquet file")
    counts = PairCounts()
    with ResponseStore(store, existing=True) as opened:
        candidates = ladder_candidates(opened, chosen, rejected, settings)
        write_pairs(out, build_pairs(candidates, counts, **spec.model_dump()), chosen, rejected)
    return f"{out}: {counts_line(counts.as_dict())}"


def _check_settings(settings: str | None) -> None:
    try:
        usable = settings is None or isinstance(json.loads(settings), dict)
    except ValueError as error:
        raise UserError(f"--settings {settings}: not JSON: {error}") from error
    if not usable:
        raise UserError(f'--settings {settings}: give an object, such as {{"max_tokens": 2048}}')
