"""What a recipe needs and this machine does not have: models, data, packages, programs, keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.lm.gguf import file_of_hub, is_gguf
from deltalearn.lm.locate import HERE, HUB_ID
from deltalearn.lm.templates import NAMED
from deltalearn.pipeline.run_options import STAGES
from deltalearn.recipe import STUDENT, EvaluateSpec, ModelSpec, Recipe
from deltalearn.util.paths import local_path, looked_for

HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
DATA_FILES = {
    ".jsonl", ".json", ".parquet", ".csv", ".yaml", ".txt", ".gz", ".arrow", ".jinja"
}  # fmt: skip
ON_GPU = {"kernels": ("liger_kernel", "kernels"), "float8": ("torchao", "float8")}
TRACKERS = ("tensorboard", "wandb", "trackio")  # packages


@dataclass(frozen=True)
class Lack:
    """Something that is not here.

    Attributes:
        text: What, and its remedy.
        stage: Who needs it first.
        stops: Whether nobody fetches it by himself, so that the stage would fail.
    """

    text: str
    stage: str
    stops: bool = True


def what_is_missing(
    recipe: Recipe, stages: Collection[str] = STAGES, *, downloads: bool = True
) -> list[str]:
    """List what the recipe needs and this machine does not have: a line each, with its remedy.

    Args:
        recipe: Of `run`.
        stages: Those that have anything to do.
        downloads: List also what the first start fetches, and what a run can do without.
    """
    found = [*_models(recipe), *_data(recipe), *_packages(recipe), *_keys(recipe)]
    if recipe.evaluate is not None:
        found += _of_evaluation(recipe.evaluate)
    wanted = (x.text for x in found if x.stage in stages and (x.stops or downloads))
    return list(dict.fromkeys(wanted))


def model_is_here(place: str) -> bool:
    """Tell whether a model's config or GGUF file is on this disk, or in the hub's cache."""
    if local_path(place).exists():
        return True
    wanted = (place, "config.json") if HUB_ID.fullmatch(place) else file_of_hub(place)
    if wanted is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(*wanted), str)


def local_models(recipe: Recipe) -> dict[str, ModelSpec]:
    """Give each model that runs here, the student among them, by its name."""
    named: dict[str, ModelSpec] = {n: m for n, m in recipe.models.items() if m.server is None}
    return named if recipe.student is None else {STUDENT: recipe.student, **named}


def _models(recipe: Recipe) -> Iterator[Lack]:
    for name, model in local_models(recipe).items():
        place, chosen = model.place, model.chat_template
        if not model_is_here(place):
            yield _absent(f"model {name}", place, "prompts")
        if is_gguf(place):
            yield from _package("gguf", "gguf", "prompts", f", for {place} of model {name}")
        if chosen is not None and chosen not in NAMED and not local_path(chosen).is_file():
            yield replace(_absent(f"chat_template of {name}", chosen, "prompts"), stops=True)


def _data(recipe: Recipe) -> Iterator[Lack]:
    sources = []
    if recipe.prompts is not None:
        sources.append(("prompts", "prompts", recipe.prompts.source))
    if recipe.pairs.source is not None:
        sources.append(("pairs", "tune", recipe.pairs.source))
    sources += [
        (f"pairs of {n}", "tune", arm.pairs.source) for n, arm in recipe.arms.items() if arm.pairs
    ]
    devs = (recipe.tune_of(arm).dev for arm in recipe.tuned_arms)
    sources += [("tune.dev", "tune", dev.source) for dev in devs if dev is not None]
    if recipe.evaluate is not None:
        own = recipe.evaluate.questions.items()
        sources += [(f"evaluate.questions.{n}", "evaluate", q.source) for n, q in own]
    for what, stage, source in sources:
        if not local_path(source).exists():
            yield _absent(what, source, stage)


def _absent(what: str, place: str, stage: str) -> Lack:
    """What is not on this disk, and is fetched if its place looks like one of the hub."""
    remedy, fetched = f"check the path{looked_for(place)}", _is_of_hub(place)
    if fetched:
        remedy = "it is downloaded from the Hugging Face hub at the first start"
    return Lack(f"{what}: {place} is not on this disk; {remedy}", stage, not fetched)


def _is_of_hub(place: str) -> bool:
    """Whether a place looks like a hub id, and not like a file that is not there."""
    if is_gguf(place):
        return file_of_hub(place) is not None and not place.startswith(HERE)
    hub = HUB_ID.fullmatch(place) and place.count("/") == 1 and not place.startswith(".")
    return bool(hub) and Path(place).suffix not in DATA_FILES


def _packages(recipe: Recipe) -> Iterator[Lack]:
    generate, local = recipe.generate, [m for m in recipe.models.values() if m.server is None]
    if local and generate.engine == "vllm":
        python = generate.vllm.python or sys.executable
        if not _has_vllm(python):
            yield Lack(
                f"package vllm, in {python}: pip install vllm there, or name a Python that has it "
                "in generate.vllm.python",
                "generate",
            )
    if local and generate.engine == "ray":
        yield from _package("ray", "ray", "generate")
    arms = recipe.tuned_arms
    for spec in [recipe.tune_of(arm) for arm in arms] if arms else [recipe.tune]:
        if spec.lora is not None:
            yield from _package("peft", "lora", "tune")
        quantised = spec.lora is not None and spec.lora.bits is not None
        if quantised or spec.optimizer == "adamw_8bit":
            yield from _package("bitsandbytes", "qlora", "tune")
        for name, (package, extra) in ON_GPU.items():
            if not getattr(spec, name):
                continue
            yield from _package(package, extra, "tune", f", for tune.{name}")
            if recipe.device == "cpu" or not _has_gpu():
                yield Lack(f"a GPU, for tune.{name}; leave it out", "tune")
        if spec.tracker in TRACKERS:
            yield from _package(spec.tracker, spec.tracker, "tune", ", for tune.tracker")


def _package(name: str, extra: str, stage: str, why: str = "") -> Iterator[Lack]:
    """A package that an extra of ours brings, if it is not here."""
    if find_spec(name) is None:
        yield Lack(f"package {name}{why}: pip install -e '.[{extra}]'", stage)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_vllm(python: str) -> bool:
    if python == sys.executable:
        return find_spec("vllm") is not None
    try:
        return subprocess.run([python, "-c", HAS_VLLM], capture_output=True).returncode == 0
    except OSError:
        return False


def _keys(recipe: Recipe) -> Iterator[Lack]:
    named = {n: m.server.key_env for n, m in recipe.models.items() if m.server and m.server.key_env}
    if recipe.evaluate is not None and recipe.evaluate.judge is not None:
        judge = recipe.evaluate.judge
        if variable := judge.key_env or (None if judge.url else "OPENAI_API_KEY"):
            named["the judge"] = variable
    for who, variable in named.items():
        if not os.environ.get(variable, "").strip():
            text = f"key of {who}: the environment variable {variable} is not set"
            yield Lack(text, "evaluate" if who == "the judge" else "generate")


def _of_evaluation(spec: EvaluateSpec) -> Iterator[Lack]:
    from deltalearn.evaluate.tulu3.suite import BY_NAME
    from deltalearn.pipeline.evaluate_options import expanded

    names = [name for name in expanded(spec.names) if name not in spec.questions]
    if not names:
        return
    yield from _package("lm_eval", "evaluate", "evaluate")
    if spec.backend.kind == "vllm" and find_spec("vllm") is None:
        yield Lack("package vllm, for evaluate.backend.kind: pip install vllm", "evaluate")
    suite = [BY_NAME[name] for name in names if name in BY_NAME]
    if any(benchmark.kind == "code" for benchmark in suite):
        if not spec.allow_code:
            text = "evaluate.allow_code: benchmarks of code run what models write; allow it"
            yield Lack(text, "evaluate")
        elif not spec.unsafe and shutil.which("bwrap") is None:
            text = "program bwrap, which isolates generated code: apt install bubblewrap"
            yield Lack(text, "evaluate")
    if "alpaca_eval" in names and spec.judge is None:
        yield Lack("evaluate.judge: AlpacaEval has no score without a judge", "evaluate", False)
    yield from _benchmark_data(suite, spec.data_dir)


def _benchmark_data(suite: list[Benchmark], given: str | None) -> Iterator[Lack]:
    from deltalearn.evaluate.tulu3.sources import data_directory
    from deltalearn.evaluate.tulu3.suite import local_pattern

    try:
        directory = data_directory(given)
    except UserError as error:
        yield Lack(f"evaluate.data_dir: {error}", "evaluate")
        return
    if directory is None:
        if suite:
            yield Lack(
                f"data of {len(suite)} benchmarks: downloaded from the Hugging Face hub, or name "
                "a local copy in evaluate.data_dir",
                "evaluate",
                stops=False,
            )
        return
    for benchmark in suite:
        pattern = local_pattern(benchmark)
        if not any(directory.glob(pattern)):
            text = f"data of {benchmark.title}: no {pattern} in {directory}"
            yield Lack(text, "evaluate")
