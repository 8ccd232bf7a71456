"""How a model is asked, as results say it, and how its chat template is rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltalearn.evaluate.harness.backends import BackendOptions
from deltalearn.evaluate.harness.run import Selection, Tasks
from deltalearn.lm.clock import reads_clock
from deltalearn.lm.gguf import is_gguf
from deltalearn.lm.locate import locate, locate_tokenizer
from deltalearn.pipeline.evaluate_options import Options
from deltalearn.records import Rendering
from deltalearn.util.paths import local_path


def evaluated_rendering(
    backend: BackendOptions, template: Mapping[str, Any], day: str
) -> Rendering:
    """Find out whether the day counts.

    Args:
        backend: The model.
        template: Arguments of its chat template.
        day: Of the evaluation.

    Returns:
        The rendering, without a day where the template does not ask, or a server has its own clock.
    """
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
        "stops": list(asked.get("until") or []),
        "samples": config.repeats,
        "temperature": asked.get("temperature", 0.0),
        "context": options.backend.context,
        "dtype": options.backend.dtype,
        "arguments": options.backend.options,
        **(rendering.content() if benchmark.chat else {}),
    }
