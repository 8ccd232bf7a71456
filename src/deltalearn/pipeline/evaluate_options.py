"""What `evaluate` is told, and how a model is asked by that, as results say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BackendOptions
from deltalearn.evaluate.harness.loading import check
from deltalearn.evaluate.harness.run import Selection, Tasks
from deltalearn.evaluate.reference.scorers import scorer
from deltalearn.evaluate.room import reasoning_settings
from deltalearn.evaluate.tulu3.sources import data_directory
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, ELEVEN, MMLU
from deltalearn.lm.clock import reads_clock
from deltalearn.lm.gguf import is_gguf
from deltalearn.lm.locate import locate, locate_tokenizer
from deltalearn.pipeline.judge import Judging, judge_key
from deltalearn.pipeline.stage import Say
from deltalearn.recipe import EvaluateSpec
from deltalearn.records import Rendering
from deltalearn.util.paths import local_path

DEFAULT = tuple(b.name for b in ALL)
SUITE = "tulu3"  # by this name the eleven of the average


@dataclass(frozen=True, kw_only=True)
class Options:
    """One evaluation: the settings of a recipe's section, and what no recipe says.

    Attributes:
        spec: The section `evaluate`.
        backend: The section's, with the model, and the recipe's device and precision.
        out: The result directory.
        name: Of the model, in tables.
        facts: What else results say of the model: run, arm, seed, and its path where that is
            another than the back-end's.
        annotations: Verdicts of AlpacaEval given before; nobody is asked then.
        template: Arguments of the model's chat template.
        day: That the template takes for today; None: the day of the directory's first start.
        update: Replace results of other settings.
        only: Forget results of benchmarks that are not asked for.
        test_set_log: Where it is noted who saw which items; default: as `folder_of_log` says.
        recipe: The resolved recipe, written beside the results; None: none is.
        say: Gets a line for everything worth telling.
    """

    spec: EvaluateSpec
    backend: BackendOptions
    out: Path
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    annotations: Path | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    day: str | None = None
    update: bool = False
    only: bool = False
    test_set_log: Path | None = None
    recipe: str | None = None
    say: Say = field(default=print, compare=False)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of the suite, of `questions`, or of lm_eval's tasks."""
        return expanded(self.spec.names)

    @property
    def judging(self) -> Judging | None:
        """The judge of AlpacaEval, or the verdicts given before, if there is either."""
        return self.annotations or self.spec.judge

    @property
    def data(self) -> Path | None:
        """Local data; None for the hub."""
        return data_directory(self.spec.data_dir)


def backend_of(spec: EvaluateSpec, model: str, *, device: str, dtype: str) -> BackendOptions:
    """Give a section's back-end its model.

    Args:
        spec: The section `evaluate`.
        model: A directory or hub id; a name, at a server.
        device: Where the section names none.
        dtype: Where the section names none.
    """
    asked = spec.backend.model_dump(exclude_none=True)
    others = {} if asked["kind"] == "openai" or device == "auto" else {"device": device}
    return BackendOptions(**{"model": model, "dtype": dtype, **others, **asked})


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Put the names of the eleven in place of the suite's."""
    eleven = tuple(name for name in DEFAULT if name in (MMLU[0], *ELEVEN))
    found = (part for name in names for part in (eleven if name == SUITE else (name,)))
    return tuple(dict.fromkeys(found))


def check_options(options: Options) -> None:
    """Raise UserError for what can be known to be wrong before anything is loaded."""
    own = options.spec.questions
    both = set(own) & {SUITE, *BY_NAME}
    if both:
        raise UserError(f"questions.{both.pop()}: a benchmark of the suite is called so; rename it")
    for questions in own.values():
        scorer(questions.scorer, questions.pattern)
    others = [n for n in options.benchmarks if n not in BY_NAME and n not in own]
    if others:
        from deltalearn.evaluate.harness.named import check_names

        check_names(others, options.spec.include_path, [*own, SUITE, *BY_NAME])
    check(options.backend)
    judge_key(options.judging, options.data)


def evaluated_rendering(options: Options, day: str) -> Rendering:
    """Find out whether the day counts.

    Args:
        options: With the model, and arguments of its chat template.
        day: Of the evaluation.

    Returns:
        The rendering, without a day where the template does not ask, or a server has its own clock.
    """
    backend, template = options.backend, options.template
    if backend.chat_only:
        return Rendering(template)
    if backend.kind == "openai":
        named = str(backend.tokenizer)
        place = locate_tokenizer(named).directory if is_gguf(named) else local_path(named)
    else:
        place = locate(backend.model).directory
    reads = reads_clock(place) if place.is_dir() else True
    return Rendering(template, day if reads else None)


def sent_fields(backend: BackendOptions, rendering: Rendering) -> dict[str, Any]:
    """Fields of each request to a server that renders conversations itself."""
    arguments = dict(rendering.arguments)
    return {"chat_template_kwargs": arguments} if arguments and backend.chat_only else {}


def settings_of(tasks: Tasks, options: Options, rendering: Rendering) -> dict[str, Any]:
    """Describe for the results how a benchmark is asked; other settings are another score.

    Args:
        tasks: The benchmark's.
        options: Of the evaluation.
        rendering: Of the model's chat template.
    """
    benchmark, config = tasks.benchmark, tasks.config
    asked = config.generation_kwargs or {}
    chosen = tasks.chosen(Selection(options.spec.split, options.spec.limit))
    number = sum(map(len, chosen.values()))
    full = benchmark.full or sum(len(tasks.ids(name)) for name in tasks.tasks)
    return {
        "n": number,
        "full_n": full,
        "subset": number < full,
        "docs": tasks.content(chosen),
        "shots": config.num_fewshot or benchmark.worked,
        "chat": benchmark.chat,
        "max_tokens": asked.get("max_gen_toks"),
        **reasoning_settings(options.spec.reasoning_tokens, asked.get("max_gen_toks")),
        "stops": list(asked.get("until") or []),
        "samples": config.repeats,
        "temperature": asked.get("temperature", 0.0),
        "context": options.backend.context,
        "dtype": options.backend.dtype,
        "arguments": options.backend.options,
        **(rendering.content() if benchmark.chat else {}),
    }
