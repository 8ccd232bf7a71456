"""`deltalearn evaluate`: the suite on one model, resumable by benchmark and by request."""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BACKENDS, BackendOptions, load
from deltalearn.evaluate.harness.results import (
    FORMAT,
    average,
    read_results,
    summary,
    write_items,
)
from deltalearn.evaluate.harness.run import SPLITS, Selection, Tasks, load_tasks, run
from deltalearn.evaluate.tulu3.sources import NoData, data_directory
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, Benchmark
from deltalearn.files import digest, replacing
from deltalearn.judging import JudgeOptions, judged, keep_answers

Say = Callable[[str], None]
DEFAULT = tuple(b.name for b in ALL)
LEDGER = "evaluations.jsonl"  # beside the result directories: who has seen which items


@dataclass(frozen=True)
class Options:
    """What to evaluate. name: of the model, in tables. benchmarks: names of the suite.

    data_dir: local data, None for the hub. allow_code: run generated programs, in the sandbox;
    unsafe: run them without isolation where there is none.
    """

    backend: BackendOptions
    out: Path
    name: str
    benchmarks: Sequence[str] = DEFAULT
    split: str = "test"
    limit: int | None = None
    data_dir: Path | None = None
    allow_code: bool = False
    unsafe: bool = False
    update: bool = False
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    say: Say = field(default=print, compare=False)


def evaluate(options: Options) -> dict[str, Any]:
    """Run what is missing of the suite; the content of results.json.

    A benchmark that cannot be run (no data, no permission to run code, a server without
    log-likelihoods) is named with its reason, and the others are run.
    """
    return _Evaluation(options).run()


class _Evaluation:
    def __init__(self, options: Options) -> None:
        self.options = options
        unknown = set(options.benchmarks) - set(BY_NAME)
        if unknown:
            raise UserError(
                f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BY_NAME)}"
            )
        for value, known, what in (
            (options.split, SPLITS, "split"),
            (options.backend.kind, BACKENDS, "back-end"),
        ):
            if value not in known:
                raise UserError(f"no {what} {value!r}; there are {', '.join(known)}")
        data_directory(options.data_dir)
        self.identity = _identity(options.backend)
        self.file = options.out / "results.json"
        self.results = self._resumed()
        self._model: Any = None
        self._answers: Any = None

    def run(self) -> dict[str, Any]:
        """All benchmarks in turn."""
        self._allow_code()
        try:
            for name in self.options.benchmarks:
                self._benchmark(BY_NAME[name])
        finally:
            if self._answers is not None:
                self._answers.close()
        self._enter_ledger()
        self.options.say(_average_line(self.results))
        return self.results

    # -- what is there -----------------------------------------------------------------------

    def _header(self) -> dict[str, Any]:
        options = self.options
        return {
            "format": FORMAT,
            "suite": "tulu3",
            "model": {
                "name": options.name,
                "path": options.backend.model,
                "identity": self.identity,
            },
            "backend": options.backend.kind,
            "split": options.split,
            "limit": options.limit,
            "data": "local" if options.data_dir else "hub",
        }

    def _resumed(self) -> dict[str, Any]:
        header = self._header()
        versions = {
            name: importlib.metadata.version(name) for name in ("deltalearn", "transformers")
        }
        fresh = {**header, "versions": versions, "benchmarks": {}, "not_run": {}, "average": None}
        if not self.file.is_file():
            return fresh
        found = read_results(self.options.out)
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

    def _allow_code(self) -> None:
        """Tell the tasks, which lm_eval calls, whether programs may run."""
        from deltalearn.evaluate.tulu3 import scoring

        scoring.code_policy = scoring.CodePolicy(self.options.allow_code, self.options.unsafe)

    # -- one benchmark -----------------------------------------------------------------------

    def _benchmark(self, benchmark: Benchmark) -> None:
        options = self.options
        reason = self._why_not(benchmark)
        if reason is None:
            try:
                tasks = load_tasks(benchmark, options.data_dir)
                reason = self._chat_cannot(benchmark, tasks)
            except NoData as error:
                reason = str(error)
        known = self.results["benchmarks"].get(benchmark.name)
        if reason is not None and known is not None:  # what was run stands, whatever is lacking now
            options.say(_line(benchmark, known) + f"  (done before; now {reason})")
            return
        if reason is not None:
            self.results["not_run"][benchmark.name] = reason
            self._write()
            options.say(f" {benchmark.title:<13} not run: {reason}")
            return
        items = options.out / "items" / f"{benchmark.name}.parquet"
        settings = self._settings(benchmark, tasks)
        if known is not None and items.is_file() and known["key"] == digest(settings):
            options.say(_line(benchmark, known) + "  (done before)")
            return
        self._ask(benchmark, tasks, settings, items)

    def _ask(
        self, benchmark: Benchmark, tasks: Tasks, settings: dict[str, Any], items: Path
    ) -> None:
        """Have the model answer, grade, and keep all of it."""
        options = self.options
        started = time.monotonic()
        model = self._loaded(benchmark)
        rows = run(tasks, model, Selection(options.split, options.limit))
        entry = {"judge": None, **summary(benchmark, rows), **settings}
        notes = [*model.trouble.notes(), *_notes(benchmark)]
        if benchmark.kind == "judged":
            keep_answers(options.out, rows, options.name)
            if options.judge.wanted:
                verdicts, rows = judged(options.out, options.judge, options.say)
                notes += verdicts.pop("notes")
                entry |= {k: v for k, v in verdicts.items() if k not in ("full_n", "subset")}
        write_items(items, rows)
        seconds = round(time.monotonic() - started, 1)
        entry |= {"seconds": seconds, "notes": notes, "key": digest(settings)}
        entry["context"] = options.backend.context or getattr(self._model, "max_length", None)
        self.results["benchmarks"][benchmark.name] = entry
        self.results["not_run"].pop(benchmark.name, None)
        self._write()
        options.say(_line(benchmark, entry))

    def _why_not(self, benchmark: Benchmark) -> str | None:
        if benchmark.kind == "code" and not (self.options.allow_code or self.options.unsafe):
            return "it runs programs that the model writes; give --allow-code"
        return None

    def _chat_cannot(self, benchmark: Benchmark, tasks: Tasks) -> str | None:
        """What a server's chat is not able to do."""
        if not self.options.backend.chat_only:
            return None
        if benchmark.kind == "choice":
            return "the server gives no log-likelihoods through its chat; give --tokenizer"
        if not benchmark.chat:
            return (
                "it is asked without a chat template, which a server's chat has; give --tokenizer"
            )
        if tasks.config.gen_prefix:
            return "a server's chat does not go on with a begun answer; give --tokenizer"
        return None

    def _settings(self, benchmark: Benchmark, tasks: Tasks) -> dict[str, Any]:
        config, judge = tasks.config, self.options.judge
        asked = config.generation_kwargs or {}
        chosen = tasks.chosen(Selection(self.options.split, self.options.limit))
        return {
            "n": sum(map(len, chosen.values())),
            "full_n": benchmark.full,
            "subset": sum(map(len, chosen.values())) < benchmark.full,
            "shots": config.num_fewshot or (6 if benchmark.name == "truthfulqa" else 0),
            "chat": benchmark.chat,
            "max_tokens": asked.get("max_gen_toks"),
            "stops": list(asked.get("until") or []),
            "samples": config.repeats,
            "temperature": asked.get("temperature", 0.0),
            "context": self.options.backend.context,
            "dtype": self.options.backend.dtype,
            "arguments": dict(self.options.backend.arguments),
            **({"asked_judge": _shown(judge)} if benchmark.kind == "judged" else {}),
        }

    def _loaded(self, benchmark: Benchmark) -> Any:
        from deltalearn.evaluate.harness.answers import Answers
        from deltalearn.evaluate.harness.model import RememberingModel

        if self._model is None:
            self._model = load(self.options.backend)
            self._answers = Answers(self.options.out / "answers.sqlite")
        asked = self.options.backend
        # All that may change an answer and does not show in the request itself.
        identity = digest(
            [asked.kind, self.identity, asked.dtype, asked.context, dict(asked.arguments)]
        )
        server = self.options.backend.kind == "openai"
        return RememberingModel(self._model, identity, self._answers, benchmark.title, server)

    # -- the files ---------------------------------------------------------------------------

    def _write(self) -> None:
        self.results["average"] = average(self.results["benchmarks"])
        self.options.out.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")

    def _enter_ledger(self) -> None:
        """Note who has seen the items, once per model, split and limit; count them."""
        options = self.options
        path = options.out.parent / LEDGER
        entry = {"model": self.identity, "split": options.split, "limit": options.limit}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        known = [json.loads(line) for line in lines]
        if not any(entry.items() <= line.items() for line in known):
            line = {
                **entry,
                "name": options.name,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            known.append(line)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        seen = len({line["model"] for line in known if line["split"] != "dev"})
        self.results["test_models"] = seen
        self._write()
        if options.split != "dev" and seen > 1:
            options.say(
                f" {seen} models have seen the test items here ({path}): a best one chosen among "
                "them by these scores is better by chance alone; choose on --split dev"
            )


def _average_line(results: dict[str, Any]) -> str:
    """The average of the eleven, or why there is none."""
    found = results["average"]
    if found is None:
        return " no average: it takes all of the eleven"
    subset = ", of SUBSETS" if any(e["subset"] for e in results["benchmarks"].values()) else ""
    mmlu = BY_NAME[found["mmlu"]].title
    ten = f"{100 * found['without_alpaca_eval']:.1f} without AlpacaEval"
    if "score" not in found:
        return f" average: {ten}, which is not judged ({mmlu}{subset})"
    return f" average of the 11: {100 * found['score']:.1f}, {ten} ({mmlu}{subset})"


def _shown(judge: JudgeOptions) -> list[str | None]:
    """What tells one judge from another, for the key."""
    return [judge.evaluator, judge.model, str(judge.annotations) if judge.annotations else None]


def _identity(backend: BackendOptions) -> str:
    """The fingerprint of the weights; a server's model by its name."""
    if backend.kind == "openai":
        return f"served:{backend.model}"
    from deltalearn.lm.locate import locate

    return locate(backend.model).fingerprint


def _notes(benchmark: Benchmark) -> list[str]:
    if benchmark.name == "humanevalplus":
        return ["the released test of HumanEval/32 passes no program: 163 of 164 is the most"]
    if benchmark.name == "bbh":
        return ["the published patterns cannot read 18 of 6,511 gold answers: 99.7 is the most"]
    if benchmark.name == "ifeval":
        from deltalearn.evaluate.graders.ifeval import tokenizer_note

        note = tokenizer_note()
        return [note] if note else []
    return []


def _line(benchmark: Benchmark, entry: dict[str, Any]) -> str:
    """One line of a terminal for one benchmark."""
    if entry["score"] is None:
        score = "to be judged"
    else:
        error = entry["stderr"]
        spread = f" +- {100 * error:.1f}" if error is not None and math.isfinite(error) else ""
        score = f"{100 * entry['score']:.1f}{spread}"
    asked = f"{entry['shots']} shots" + ("" if entry["chat"] else ", no chat")
    if entry["max_tokens"]:
        asked += f", {entry['max_tokens']} tokens"
    if entry.get("judge"):
        asked += f", judged by {entry['judge']}"
    subset = f" of {entry['full_n']:,}: a SUBSET" if entry["subset"] else ""
    return (
        f" {benchmark.title:<13} {score:<14} {entry['metric']}, {entry['aggregation']}, "
        f"n {entry['n']:,}{subset}, {asked}"
    )
