"""Score one model on benchmarks: the suite, own questions, lm_eval's tasks.

`deltalearn evaluate` and the stage of `run` are this; it is resumable by benchmark and by request.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

from deltalearn import __version__
from deltalearn.errors import UserError
from deltalearn.evaluate.harness.cache import FILE, Answers
from deltalearn.evaluate.harness.loading import group_size, loaded, needs_template
from deltalearn.evaluate.harness.model import CachedLM
from deltalearn.evaluate.harness.named import load_named
from deltalearn.evaluate.harness.results import (
    FORMAT,
    Measured,
    average,
    items_file,
    read_results,
    summary,
    write_items,
    write_results,
)
from deltalearn.evaluate.harness.run import Selection, Tasks, load_tasks, run
from deltalearn.evaluate.harness.served import Server, Unreachable
from deltalearn.evaluate.harness.terminal import average_line, line, not_run
from deltalearn.evaluate.harness.test_set_log import TestSetLog, folder_of_log
from deltalearn.evaluate.reference.benchmark import item_rows
from deltalearn.evaluate.reference.kept import Kept
from deltalearn.evaluate.reference.scorers import scorer
from deltalearn.evaluate.room import notes_of
from deltalearn.evaluate.tulu3 import humaneval
from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.evaluate.tulu3.sources import NoData
from deltalearn.evaluate.tulu3.suite import BY_NAME
from deltalearn.lm.clock import today
from deltalearn.lm.locate import locate
from deltalearn.pipeline.evaluate_options import (
    Options,
    check_options,
    evaluated_rendering,
    sent_fields,
    settings_of,
)
from deltalearn.pipeline.judge import judge_key, judged, keep_answers
from deltalearn.pipeline.lock import Hold
from deltalearn.pipeline.questions import Questions
from deltalearn.records import Placement
from deltalearn.util.files import digest, write_text
from deltalearn.util.signals import leave_if_asked

OWN = ("full_n", "subset", "aggregation")  # of an entry, which the judge's summary has its own of


def evaluate(options: Options) -> dict[str, Any]:
    """Run what is missing of the benchmarks.

    A benchmark that cannot be run (no data, no permission to run code, a server without
    log-likelihoods) is named with its reason, and the others are run.

    Returns:
        The content of results.json.

    Raises:
        UserError: If there is no such benchmark, back-end or judge, another process works in the
            directory, or it holds results of something else.
    """
    check_options(options)
    with Hold(options.out):
        return _Evaluation(options).run()


class _Evaluation:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = options.spec
        self.selection = Selection(options.spec.split, options.spec.limit)
        self.data = options.data
        self.judge = judge_key(options.judging, self.data)
        self.identity = options.backend.identity
        self.file = options.out / "results.json"
        self.results = self._resumed()
        day = self.results.setdefault("day", options.day or today())  # of the first start
        self.rendering = evaluated_rendering(options, day)
        self.log = TestSetLog(options.test_set_log or folder_of_log(options.out))
        self._model: Any = None
        self._server: Any = None
        self._answers: Any = None

    def run(self) -> dict[str, Any]:
        """All benchmarks in turn; what they are is written down first."""
        if self.options.recipe is not None:
            write_text(self.options.out / "recipe.yaml", self.options.recipe)
        # Told to the tasks, which lm_eval calls.
        humaneval.consent = {"allow": self.spec.allow_code, "unsafe": self.spec.unsafe}
        try:
            # First those for which the model is loaded by itself and let go again.
            for name in self.spec.questions:
                if name in self.options.benchmarks:
                    self._questions(name)
            for name in self.options.benchmarks:
                if name not in self.spec.questions:
                    self._benchmark(name)
        finally:
            if self._answers is not None:
                self._answers.close()
        if self.options.only:
            self._forget_others()
        self._write()
        self._warn_of_choosing()
        if any(name in BY_NAME for name in self.options.benchmarks):
            self.options.say(average_line(self.results))
        return self.results

    # -- what is there -----------------------------------------------------------------------

    def _header(self) -> dict[str, Any]:
        options = self.options
        return {
            "format": FORMAT,
            **({"day": options.day} if options.day else {}),
            "model": {
                "name": options.name,
                "path": options.backend.model,
                "identity": self.identity,
                **options.facts,
            },
            "backend": options.backend.kind,
            "split": self.spec.split,
            "limit": self.spec.limit,
            "data": "local" if self.data else "hub",
        }

    def _resumed(self) -> dict[str, Any]:
        header = self._header()
        versions = {
            "deltalearn": __version__,  # from a checkout that is not installed, too
            "transformers": importlib.metadata.version("transformers"),
        }
        fresh = {**header, "versions": versions, "benchmarks": {}, "not_run": {}, "average": None}
        if not self.file.is_file():
            return fresh
        try:
            found = read_results(self.options.out)
        except UserError:
            if self.options.update:
                return fresh
            raise
        changed = [name for name in header if found.get(name) != header[name]]
        if not changed:
            return found
        if self.options.update:
            return fresh
        shown = ", ".join(f"{n}: {found.get(n)!r} there, {header[n]!r} now" for n in changed)
        raise UserError(
            f"{self.options.out}: has results of something else ({shown}); choose another --out, "
            "or --update to replace them"
        )

    # -- one benchmark -----------------------------------------------------------------------

    def _tasks(self, name: str) -> Tasks:
        if name in BY_NAME:
            if BY_NAME[name].kind == "code" and not self.spec.allow_code:
                raise NoData("it runs programs that the model writes; give --allow-code")
            return load_tasks(BY_NAME[name], self.data)
        return load_named(name, self.spec.include_path)

    def _benchmark(self, name: str) -> None:
        title = BY_NAME[name].title if name in BY_NAME else name
        try:
            tasks = self._tasks(name)
            reason = tasks.chat_cannot if self.options.backend.chat_only else None
        except NoData as error:
            reason = str(error)
        except UserError as error:
            if name in BY_NAME:
                raise
            reason = str(error)
        if reason is not None:
            self._leave_out(name, title, reason)
            return
        benchmark, settings = tasks.benchmark, settings_of(tasks, self.options, self.rendering)
        if self._is_done(benchmark, settings):
            self._say_before(name, title)
            return
        model = self._loaded(benchmark, settings)
        try:
            self._ask(benchmark, tasks, settings, model)
        except UserError as error:  # of a prompt, of the data, of the sandbox: not of the others
            self._leave_out(name, title, str(error))
            if isinstance(error, Unreachable):
                raise

    def _questions(self, name: str) -> None:
        """All metrics of a set of own questions, by our own scorer: lm_eval need not be there."""
        options, spec = self.options, self.spec.questions[name]
        if options.backend.kind == "openai":
            reason = "own questions need the model here, not behind a server"
            self._leave_out(name, name, reason)
            return
        questions = Questions(name, spec, self.selection, self.rendering)
        from deltalearn.lm.load import place

        placement = place(options.backend.device or "auto", options.backend.dtype)
        missing = []
        for benchmark in questions.benchmarks:
            settings = questions.settings(benchmark, placement.dtype, self.spec.reasoning_tokens)
            if self._is_done(benchmark, settings):
                self._say_before(benchmark.name, benchmark.title)
            else:
                missing.append((benchmark, settings))
        if not missing:
            return
        started = time.monotonic()
        for benchmark, settings in missing:
            self._enter(benchmark, settings)
        scored = self._score(questions, [asked.measure for asked, _ in missing], placement)
        for benchmark, settings in missing:
            rows = item_rows(questions.items, scored, benchmark.measure)
            write_items(options.out, benchmark.name, rows)
            seconds = round(time.monotonic() - started, 1)
            greedy = benchmark.measure == "greedy_accuracy"
            notes = notes_of(scored, self.spec.reasoning_tokens) if greedy else []
            entry = {**summary(benchmark, rows), **settings, "seconds": seconds, "notes": notes}
            self._keep(benchmark, entry | {"key": digest(settings), "unanswered": 0})

    def _score(
        self, questions: Questions, measures: list[str], placement: Placement
    ) -> list[dict[str, Any]]:
        """Score own questions by transformers: a row for each. What was answered is kept."""
        from deltalearn.evaluate.reference.score import Asked, score_model
        from deltalearn.lm.load import load_model, load_tokenizer

        spec, budget = questions.spec, self.spec.token_budget
        how = (spec.max_tokens, budget, self.rendering, self.spec.reasoning_tokens)
        asked = Asked(measures, scorer(spec.scorer, spec.pattern), *how)
        files, title = locate(self.options.backend.model), self.options.name
        with Kept(self._kept(), digest([self.identity, placement.dtype])) as kept:
            model, tokenizer = load_model(files, placement), load_tokenizer(files)
            return score_model(
                model, tokenizer, questions.items, asked, title=title, name=files.name, kept=kept
            )

    def _keep(self, benchmark: Measured, entry: dict[str, Any]) -> None:
        self.results["benchmarks"][benchmark.name] = entry
        self.results["not_run"].pop(benchmark.name, None)
        self._write()
        self.options.say(line(benchmark.title, entry))
        leave_if_asked(f"{benchmark.title} is done; stopped")

    def _say_before(self, name: str, title: str, remark: str = "") -> None:
        self.options.say(line(title, self.results["benchmarks"][name], f"done before{remark}"))

    def _leave_out(self, name: str, title: str, reason: str) -> None:
        """Name what is not run. What was run stands, whatever is lacking now."""
        if name in self.results["benchmarks"]:
            self._say_before(name, title, f"; now {reason}")
            return
        self.results["not_run"][name] = reason
        self._write()
        self.options.say(not_run(title, reason))

    def _wanted(self) -> set[str]:
        """Names of all that is asked for, as results have them."""
        own = self.spec.questions
        metrics = {f"{name}.{metric}" for name in own for metric in own[name].metrics}
        return set(self.options.benchmarks) | metrics

    def _forget_others(self) -> None:
        """Leave nothing in the results that is not asked for."""
        wanted = self._wanted()
        for part in ("benchmarks", "not_run"):
            for name in set(self.results[part]) - wanted:
                del self.results[part][name]
                items_file(self.options.out, name).unlink(missing_ok=True)

    def _is_done(self, benchmark: Measured, settings: dict[str, Any]) -> bool:
        """Whether it was run on these items in this way, with an answer for each.

        What a judge has read stands when no judge is named now.
        """
        known = self.results["benchmarks"].get(benchmark.name, {})
        if (
            known.get("key") != digest(settings)
            or not items_file(self.options.out, benchmark.name).is_file()
        ):
            return False
        if benchmark.kind == "judged" and self.judge is None and known.get("score") is not None:
            return True
        if known.get("unanswered"):
            return False
        asked = benchmark.kind == "judged" and self.judge is not None
        return not asked or known.get("judge_key") == self.judge

    def _ask(
        self, benchmark: Benchmark, tasks: Tasks, settings: dict[str, Any], model: Any
    ) -> None:
        """Have the model answer, grade, and keep all of it."""
        options = self.options
        started = time.monotonic()
        rows = run(tasks, model, self.selection)
        entry = {"judge": None, **summary(benchmark, rows), **settings}
        notes = [*model.issues.notes(), *benchmark.notes()]
        if benchmark.kind == "judged":
            keep_answers(options.out, rows, options.name)
            if (judging := options.judging) is not None:
                try:
                    verdicts, rows = judged(options.out, judging, self.data, options.say)
                except UserError as error:
                    if self._stands(benchmark, settings, f"not judged: {error}"):
                        return
                    notes.append(f"not judged: {error}")
                else:
                    notes += verdicts.pop("notes")
                    entry |= {k: v for k, v in verdicts.items() if k not in OWN}
                    entry["judge_key"] = self.judge
        write_items(options.out, benchmark.name, rows)
        seconds = round(time.monotonic() - started, 1)
        entry |= {"seconds": seconds, "notes": notes, "key": digest(settings)}
        entry["unanswered"] = model.issues.unanswered
        context = options.backend.context or getattr(self._model, "max_length", None)
        entry["context"] = None if options.backend.chat_only else context  # lm_eval makes one up
        self._keep(benchmark, entry)

    def _stands(self, benchmark: Measured, settings: dict[str, Any], remark: str) -> bool:
        """Whether the same answers were judged before; that score is kept, and it is said why."""
        known = self.results["benchmarks"].get(benchmark.name, {})
        if known.get("key") != digest(settings) or known.get("score") is None:
            return False
        self._say_before(benchmark.name, benchmark.title, f"; now {remark}")
        return True

    def _loaded(self, benchmark: Benchmark, settings: dict[str, Any]) -> Any:
        """The model as `run` takes it, loaded once; who sees which items is written down first."""
        from deltalearn.evaluate.harness.prompts import prompts_of

        asked = self.options.backend
        sent = sent_fields(asked, self.rendering)
        if self._model is None:
            self._model = loaded(asked)
            self._server = Server(self._model, sent) if asked.kind == "openai" else None
        if benchmark.chat:
            needs_template(self._model, asked.model)
        # All that may change an answer and does not show in the request itself.
        how = [asked.kind, self.identity, asked.dtype, asked.context, asked.options]
        identity = digest(how + [sent] * bool(sent))
        return CachedLM(
            self._model,
            identity,
            self._kept(),
            benchmark.title,
            self._server,
            prompts_of(self._model, self.rendering, scored=benchmark.kind == "choice"),
            group_size(asked),
            lambda: self._enter(benchmark, settings),
            settings.get("reasoning_tokens", 0),
        )

    def _kept(self) -> Answers:
        """What the model has answered before, on disk."""
        if self._answers is None:
            self._answers = Answers(self.options.out / FILE)
        return self._answers

    # -- the files ---------------------------------------------------------------------------

    def _write(self) -> None:
        results = self.results
        results["average"] = average(results["benchmarks"])
        results["test_models"] = self.log.test_models(self._wanted())
        write_results(self.options.out, results)

    def _enter(self, benchmark: Measured, settings: dict[str, Any]) -> None:
        """Note in the log who is about to see which items."""
        options = self.options
        seen = {
            "model": self.identity,
            "benchmark": benchmark.name,
            "split": self.spec.split,
            "limit": self.spec.limit,
            "items": settings["n"],
            "docs": settings["docs"],
        }
        self.log.enter(seen, options.name)

    def _warn_of_choosing(self) -> None:
        seen = self.results["test_models"]
        if self.options.test_set_log is None and self.spec.split != "dev" and seen > 1:
            self.options.say(
                f" {seen} models have seen test items of these benchmarks ({self.log.path}): a "
                "best one chosen among them by these scores is better by chance alone; choose on "
                "--split dev"
            )
