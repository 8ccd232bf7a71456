"""Run a recipe stage by stage in a run directory; every stage is resumable and skipped when done.

A stage is identified by a key: the hash of its settings and of the keys of what it reads. Nothing
heavy is imported until a stage has work to do, so that a finished run says so at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from deltalearn.formats.rows import source_digest
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.pipeline.directory import RunDirectory, stage_line
from deltalearn.pipeline.generate import STORE, STORE_FILES, AnswerStage
from deltalearn.pipeline.generator import Respondent
from deltalearn.pipeline.prompts import read_and_keep_prompts
from deltalearn.recipe.load import LoadedRecipe
from deltalearn.recipe.schema import STUDENT, TuneSpec
from deltalearn.util.files import digest

STAGES = ("prompts", "generate", "pairs", "tune", "evaluate", "report")
Say = Callable[[str], None]


def run_recipe(
    loaded: LoadedRecipe,
    out: Path | None = None,
    *,
    update: bool = False,
    until: str = STAGES[-1],
    retry_errors: bool = False,
    say: Say = print,
) -> RunDirectory:
    """Run `loaded` in `out` (default runs/<name>) up to and including the stage `until`.

    Run it again to resume; a finished run does nothing. retry_errors: ask again for answers that
    ended in errors, and do again what depends on them. `say` gets one line per stage that worked.
    """
    out = out or Path("runs") / loaded.recipe.name
    directory = RunDirectory(out, loaded, update=update, may_hold=STORE_FILES)
    try:
        pipeline = Pipeline(loaded, directory, say, retry_errors=retry_errors)
        for stage in STAGES[: STAGES.index(until) + 1]:
            getattr(pipeline, stage)()
        if until == STAGES[-1]:
            directory.forget_others(pipeline.seen)
    finally:
        directory.close()
    return directory


class Pipeline:
    """The stages of one run. Each method does one stage and leaves its artefacts on disk."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        directory: RunDirectory,
        say: Say,
        *,
        retry_errors: bool = False,
    ) -> None:
        self.recipe = loaded.recipe
        self.directory = directory
        self.say = say
        self.retry_errors = retry_errors
        self.seen: list[str] = []
        self.keys: dict[str, str] = {}
        self._last_examples: tuple = (None, [], {})
        self._said: set[str] = set()

    # -- helpers -----------------------------------------------------------------------------

    def _path(self, *parts: str) -> Path:
        return self.directory.path.joinpath(*parts)

    def _stage(
        self,
        name: str,
        inputs: Any,
        outputs: list[str],
        work: Callable[[], dict[str, Any]],
        scratch: str | None = None,
    ) -> None:
        key = digest(inputs)
        self.keys[name] = key
        self.seen.append(name)
        if self.directory.stage(name, key, outputs, work, scratch):
            self.say(stage_line(name, self.directory.manifest["stages"][name]))

    @cached_property
    def respondents(self) -> dict[str, Respondent]:
        """All models as those who answer, identified; a hub model keeps its first commit."""
        known = self.directory.manifest["models"]
        found = {}
        for name in [STUDENT, *self.recipe.models]:
            model, before = self.recipe.model(name), known.get(name, {})
            pinned = before.get("commit") if before.get("path") == model.path else None
            found[name] = Respondent(
                name, model, self.recipe.generate, lambda: self.placement, pinned
            )
            known[name] = found[name].record
        return found

    @cached_property
    def models(self) -> dict[str, ModelFiles]:
        """The models that are here, not behind a server."""
        files = {name: r.files for name, r in self.respondents.items()}
        return {name: f for name, f in files.items() if f is not None}

    @cached_property
    def placement(self):
        """Device and dtype, resolved."""
        from deltalearn.lm.load import device_name, place

        placement = place(self.recipe.device, self.recipe.dtype)
        device = {"device": device_name(placement), "dtype": placement.dtype}
        self.directory.manifest["machine"] |= device
        return placement

    # -- stages ------------------------------------------------------------------------------

    def prompts(self) -> None:
        """Read, check and keep the prompts: prompts.jsonl and prompts.rejects.jsonl."""
        spec = self.recipe.prompts

        def work() -> dict[str, Any]:
            return read_and_keep_prompts(spec, self.directory.path, self.say)

        inputs = {"spec": spec.model_dump(), "source": source_digest(spec.source)}
        self._stage("prompts", inputs, ["prompts.jsonl", "prompts.rejects.jsonl"], work)

    def _answers(self, name: str) -> AnswerStage:
        prompts = self.directory.counts("prompts")["prompts"]
        return AnswerStage(
            self.respondents[name],
            self.directory,
            self.keys["prompts"],
            prompts,
            self.retry_errors,
            self.say,
        )

    def generate(self) -> None:
        """Every needed model's answers, in responses.sqlite."""
        for name in self.recipe.generators:
            stage = self._answers(name)
            stage.review()
            self._stage(stage.name, stage.inputs(), [STORE], stage.work)
            # What is made of answers follows them, however they came into the store.
            self.keys[stage.name] = digest([self.keys[stage.name], stage.content])

    def pairs(self) -> None:
        """One Parquet file per pairing, a pure function of the store."""
        for chosen, rejected in self.recipe.pairings:
            self._pair(chosen, rejected)

    def _pair(self, chosen: str, rejected: str) -> None:
        spec = self.recipe.pairs
        output = pairs_file(chosen, rejected)

        def work() -> dict[str, Any]:
            from deltalearn.pairs import PairCounts, build_pairs, write_pairs
            from deltalearn.pairs.candidates import candidates_of_requests
            from deltalearn.responses.store import ResponseStore

            sides = self._answers(chosen).requests, self._answers(rejected).requests
            with ResponseStore(self._path(STORE)) as store:
                candidates = candidates_of_requests(store, *sides)
                counts = PairCounts()
                pairs = build_pairs(candidates, counts, **spec.model_dump())
                write_pairs(self._path(output), pairs, chosen, rejected)
            return counts.as_dict()

        inputs = {
            "responses": [self.keys[f"generate/{chosen}"], self.keys[f"generate/{rejected}"]],
            "spec": spec.model_dump(),
        }
        self._stage(f"pairs/{Path(output).stem}", inputs, [output], work)

    def tune(self) -> None:
        """Every tuned arm, once per seed: arms/<arm>/seed-<seed>/final is a model directory."""
        for arm in self.recipe.tuned_arms:
            for seed in self.recipe.seeds:
                self._tune(arm, seed)

    def _tune(self, arm: str, seed: int) -> None:
        student = self.models[STUDENT]
        spec = self.recipe.tune_of(arm)
        pairs = pairs_file(self.recipe.arms[arm].chosen, self.recipe.arms[arm].rejected)
        folder = f"arms/{arm}/seed-{seed}"

        def work() -> dict[str, Any]:
            from deltalearn.tune import ReferenceCache, tune
            from deltalearn.tune.reference import FILE

            examples, counts = self._examples(pairs, spec)
            with ReferenceCache(self._path("reference", FILE)) as reference:
                result = tune(
                    student,
                    examples,
                    spec,
                    seed,
                    self._path(folder),
                    reference=reference,
                    placement=self.placement,
                    title=f"tune {arm} (seed {seed})",
                    dev=self._dev(spec),
                    say=self._say_once,
                )
                return {**counts, "reference_scored": reference.scored, **result}

        inputs = {
            "pairs": self.keys[f"pairs/{Path(pairs).stem}"],
            "student": student.fingerprint,
            "spec": spec.model_dump(exclude={"checkpoint_every", "tracker"}),
            "dev": source_digest(spec.dev.source) if spec.dev else None,
            "seed": seed,
            "dtype": self.recipe.dtype,
        }
        outputs = [f"{folder}/final", f"{folder}/log.jsonl"]
        self._stage(f"tune/{arm}/seed-{seed}", inputs, outputs, work, scratch=folder)

    def _say_once(self, line: str) -> None:
        """Say what is the same for every arm and seed only the first time."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _examples(self, pairs: str, spec: TuneSpec) -> tuple[Any, dict]:
        """Tokenised pairs and their counts; the last set is kept, for the next seed or arm."""
        from deltalearn.lm.load import load_tokenizer
        from deltalearn.tune import prepare_examples, read_pairs_from

        wanted = (pairs, spec.max_pairs, spec.max_length, spec.truncation)
        if self._last_examples[0] != wanted:
            tokenizer = load_tokenizer(self.models[STUDENT])
            rows = read_pairs_from(str(self._path(pairs)), limit=spec.max_pairs)
            examples, counts = prepare_examples(
                tokenizer, rows, spec.max_length, truncation=spec.truncation
            )
            self._last_examples = wanted, examples, counts.as_dict()
        return self._last_examples[1:]

    def _dev(self, spec: TuneSpec) -> Callable[[Any], dict[str, float]] | None:
        """What scores the student while it is tuned, or None if the recipe does not ask."""
        from deltalearn.evaluate.reference.dev import dev_scores

        return dev_scores(spec.dev, self.models[STUDENT]) if spec.dev else None

    def evaluate(self) -> None:
        """Scores of the student, of every weak model that is here and of every tuned student."""
        run = self.recipe.name
        for name, files in self.models.items():
            model = {"name": f"{run}/{name}", "path": self.recipe.model(name).path}
            self._evaluate(f"models/{name}", files.fingerprint, files.directory, model)
        for arm in self.recipe.tuned_arms:
            for seed in self.recipe.seeds:
                name = f"{arm}/seed-{seed}"
                final = self._path("arms", name, "final")
                model = {"name": f"{run}/{arm} seed {seed}", "path": str(final)}
                model |= {"run": run, "arm": arm, "seed": seed}
                self._evaluate(f"arms/{name}", self.keys[f"tune/{name}"], final, model)

    @cached_property
    def _items(self):
        from deltalearn.formats.questions import read_items

        spec = self.recipe.evaluate
        return read_items(
            spec.source,
            prompt_column=spec.prompt_column,
            answer_column=spec.answer_column,
            task_column=spec.task_column,
            limit=spec.limit,
        )

    @cached_property
    def _items_digest(self) -> Any:
        return source_digest(self.recipe.evaluate.source)

    def _evaluate(self, name: str, model_key: str, directory: Path, model: dict[str, Any]) -> None:
        spec = self.recipe.evaluate
        output = f"scores/{name}"

        def work() -> dict[str, Any]:
            from deltalearn.evaluate.harness.results import summary, write_items, write_results
            from deltalearn.evaluate.reference.benchmark import QuestionBenchmark, item_rows
            from deltalearn.evaluate.reference.score import score_model

            files = locate(str(directory.resolve()))
            rows = score_model(
                files,
                self._items,
                spec.metrics,
                max_tokens=spec.max_tokens,
                token_budget=spec.token_budget,
                placement=self.placement,
                title=name,
            )
            entries = {}
            for metric in spec.metrics:
                benchmark = QuestionBenchmark("questions", metric)
                kept = item_rows(self._items, rows, metric)
                write_items(self._path(output), benchmark.name, kept)
                entries[benchmark.name] = summary(benchmark, kept)
            header = {"model": {**model, "identity": files.fingerprint}, "split": "test"}
            write_results(self._path(output), {**header, "benchmarks": entries})
            return {m: entries[f"questions.{m}"]["score"] for m in spec.metrics}

        inputs = {
            "model": model_key,
            "items": self._items_digest,
            "spec": spec.model_dump(exclude={"bootstrap", "token_budget"}),
            "dtype": self.recipe.dtype,
            "format": 2,
        }
        self._stage(f"evaluate/{name}", inputs, [f"{output}/results.json"], work)

    def report(self) -> None:
        """summary.json and report.html."""

        def work() -> dict[str, Any]:
            from deltalearn.report import write_report

            write_report(self.directory.path)
            return {}

        inputs = {
            "stages": {n: self.keys[n] for n in self.seen},
            "spec": self.recipe.evaluate.bootstrap,
        }
        self._stage("report", inputs, ["summary.json", "report.html"], work)


def pairs_file(chosen: str | None, rejected: str | None) -> str:
    """Where the pairs of one pairing are kept inside a run."""
    return f"pairs/{chosen}_over_{rejected}.parquet"
