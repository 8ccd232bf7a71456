"""What `evaluate` is told: by a recipe's section, or by the options of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BACKENDS, BackendOptions
from deltalearn.evaluate.harness.loading import check
from deltalearn.evaluate.harness.run import SPLITS
from deltalearn.evaluate.reference.scorers import scorer
from deltalearn.evaluate.tulu3.sources import data_directory
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, MMLU, averaged
from deltalearn.pipeline.judge import JudgeOptions, judge_key
from deltalearn.pipeline.stage import Say
from deltalearn.recipe.evaluation import EvaluateSpec, QuestionsSpec

DEFAULT = tuple(b.name for b in ALL)
SUITE = "tulu3"  # by this name the eleven of the average


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of one evaluation.

    Attributes:
        backend: The model, and what runs it.
        out: The result directory.
        name: Of the model, in tables.
        facts: What else results say of the model: run, arm, seed, and its path where that is
            another than the back-end's.
        benchmarks: Names of the suite, of `questions`, or of lm_eval's tasks.
        questions: Own questions, by name.
        include_path: A directory of lm_eval tasks.
        split: test, dev (a fifth of the items) or held-out (the rest).
        limit: Items of each benchmark; None for all.
        data_dir: Local data, None for the hub.
        allow_code: Run generated programs, in the sandbox.
        unsafe: Run them without isolation where there is none.
        update: Replace results of other settings.
        only: Forget results of benchmarks that are not asked for.
        test_set_log: Where it is noted who saw which items; default: beside `out`.
        token_budget: Tokens of one batch of own questions.
        recipe: The resolved recipe, written beside the results; None: none is.
        judge: Who judges AlpacaEval.
        say: Gets a line for everything worth telling.
    """

    backend: BackendOptions
    out: Path
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    benchmarks: Sequence[str] = DEFAULT
    questions: Mapping[str, QuestionsSpec] = field(default_factory=dict)
    include_path: str | None = None
    split: str = "test"
    limit: int | None = None
    data_dir: Path | None = None
    allow_code: bool = False
    unsafe: bool = False
    update: bool = False
    only: bool = False
    test_set_log: Path | None = None
    token_budget: int = 16384
    recipe: str | None = None
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    say: Say = field(default=print, compare=False)


def options_of(
    spec: EvaluateSpec, model: str, *, device: str, dtype: str, **others: Any
) -> Options:
    """Make the options for a model by a recipe's section.

    Args:
        spec: The section `evaluate`.
        model: A directory or hub id; a name, at a server.
        device: Where the section names none.
        dtype: Where the section names none.
        others: Further fields of `Options`.
    """
    asked = spec.backend.model_dump()
    arguments = asked.pop("options")
    served = asked["kind"] == "openai"
    asked["device"] = asked["device"] or (None if served or device == "auto" else device)
    asked["dtype"] = asked["dtype"] or dtype
    return Options(
        backend=BackendOptions(model=model, arguments=arguments, **asked),
        benchmarks=expanded(spec.names),
        questions=spec.questions,
        include_path=spec.include_path,
        split=spec.split,
        limit=spec.limit,
        data_dir=Path(spec.data_dir) if spec.data_dir else None,
        allow_code=spec.allow_code,
        unsafe=spec.unsafe,
        token_budget=spec.token_budget,
        judge=JudgeOptions(**spec.judge.model_dump()) if spec.judge else JudgeOptions(),
        **others,
    )


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Put the names of the eleven in place of the suite's."""
    averages = averaged(set(DEFAULT), MMLU[0]) or ()
    eleven = tuple(name for name in DEFAULT if name in averages)
    found = (part for name in names for part in (eleven if name == SUITE else (name,)))
    return tuple(dict.fromkeys(found))


def check_options(options: Options) -> None:
    """Raise UserError for what can be known to be wrong before anything is loaded."""
    both = set(options.questions) & {SUITE, *BY_NAME}
    if both:
        raise UserError(f"questions.{both.pop()}: a benchmark of the suite is called so; rename it")
    for questions in options.questions.values():
        scorer(questions.scorer, questions.pattern)
    others = [n for n in options.benchmarks if n not in BY_NAME and n not in options.questions]
    if others:
        from deltalearn.evaluate.harness.named import check_names

        check_names(others, options.include_path, [*options.questions, SUITE, *BY_NAME])
    for value, known, what in (
        (options.split, SPLITS, "split"),
        (options.backend.kind, BACKENDS, "back-end"),
    ):
        if value not in known:
            raise UserError(f"no {what} {value!r}; there are {', '.join(known)}")
    check(options.backend)
    judge_key(options.judge, data_directory(options.data_dir))
