"""What a recipe needs and this machine does not have: models, data, packages, programs, keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from deltalearn.lm.locate import HUB_ID
from deltalearn.recipe import STUDENT, Recipe
from deltalearn.recipe.evaluation import EvaluateSpec
from deltalearn.util.paths import local_path

if TYPE_CHECKING:
    from deltalearn.evaluate.tulu3.benchmark import Benchmark

HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def what_is_missing(recipe: Recipe) -> list[str]:
    """List what the recipe needs and this machine does not have: a line each, with its remedy."""
    found = [*_models(recipe), *_data(recipe), *_packages(recipe), *_keys(recipe)]
    if recipe.evaluate is not None:
        found += _of_evaluation(recipe.evaluate)
    return list(dict.fromkeys(found))


def model_is_here(path: str) -> bool:
    """Tell whether a model's config is on this disk, as a directory or in the hub's cache."""
    if local_path(path).is_dir():
        return True
    if not HUB_ID.fullmatch(path):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, "config.json"), str)


def _models(recipe: Recipe) -> Iterator[str]:
    named = {name: m.path for name, m in recipe.models.items() if m.server is None}
    if recipe.student is not None:
        named = {STUDENT: recipe.student.path, **named}
    for name, path in named.items():
        if not model_is_here(path):
            yield f"model {name}: {path} is not on this disk; {_remedy(path)}"


def _data(recipe: Recipe) -> Iterator[str]:
    sources = {}
    if recipe.prompts is not None:
        sources["prompts"] = recipe.prompts.source
    if recipe.pairs.source is not None:
        sources["pairs"] = recipe.pairs.source
    sources |= {f"pairs of {n}": a.pairs.source for n, a in recipe.arms.items() if a.pairs}
    if recipe.evaluate is not None:
        sources |= {f"questions {n}": q.source for n, q in recipe.evaluate.questions.items()}
    for what, source in sources.items():
        if not local_path(source).exists():
            yield f"{what}: {source} is not on this disk; {_remedy(source)}"


def _remedy(place: str) -> str:
    if HUB_ID.fullmatch(place) and "/" in place:
        return "it is downloaded from the Hugging Face hub at the first start"
    return "check the path"


def _packages(recipe: Recipe) -> Iterator[str]:
    generate, local = recipe.generate, [m for m in recipe.models.values() if m.server is None]
    if local and generate.engine == "vllm":
        python = generate.vllm.python or sys.executable
        if not _has_vllm(python):
            yield (
                f"package vllm, in {python}: pip install vllm there, or name a Python that has it "
                "in generate.vllm.python"
            )
    if local and generate.engine == "ray" and find_spec("ray") is None:
        yield "package ray: pip install 'deltalearn[ray]'"
    arms = recipe.tuned_arms
    for spec in [recipe.tune_of(arm) for arm in arms] if arms else [recipe.tune]:
        if spec.lora is not None and find_spec("peft") is None:
            yield "package peft: pip install 'deltalearn[lora]'"
        quantised = spec.lora is not None and spec.lora.bits is not None
        if (quantised or spec.optimizer == "adamw_8bit") and find_spec("bitsandbytes") is None:
            yield "package bitsandbytes: pip install 'deltalearn[qlora]'"
        if spec.tracker in TRACKERS and find_spec(TRACKERS[spec.tracker]) is None:
            yield f"package {spec.tracker}: pip install 'deltalearn[{spec.tracker}]'"


def _has_vllm(python: str) -> bool:
    if python == sys.executable:
        return find_spec("vllm") is not None
    try:
        return subprocess.run([python, "-c", HAS_VLLM], capture_output=True).returncode == 0
    except OSError:
        return False


def _keys(recipe: Recipe) -> Iterator[str]:
    named = {n: m.server.key_env for n, m in recipe.models.items() if m.server and m.server.key_env}
    if recipe.evaluate is not None and recipe.evaluate.judge is not None:
        judge = recipe.evaluate.judge
        if variable := judge.key_env or (None if judge.url else "OPENAI_API_KEY"):
            named["the judge"] = variable
    for who, variable in named.items():
        if not os.environ.get(variable, "").strip():
            yield f"key of {who}: the environment variable {variable} is not set"


def _of_evaluation(spec: EvaluateSpec) -> Iterator[str]:
    from deltalearn.evaluate.tulu3.suite import BY_NAME
    from deltalearn.pipeline.evaluate_options import expanded

    names = [name for name in expanded(spec.names) if name not in spec.questions]
    if not names:
        return
    if find_spec("lm_eval") is None:
        yield "package lm_eval: pip install 'deltalearn[evaluate]'"
    if spec.backend.kind == "vllm" and find_spec("vllm") is None:
        yield "package vllm, for evaluate.backend.kind: pip install vllm"
    suite = [BY_NAME[name] for name in names if name in BY_NAME]
    if any(benchmark.kind == "code" for benchmark in suite):
        if not spec.allow_code:
            yield "evaluate.allow_code: benchmarks of code run what models write; allow it"
        elif not spec.unsafe and shutil.which("bwrap") is None:
            yield "program bwrap, which isolates generated code: apt install bubblewrap"
    if "alpaca_eval" in names and spec.judge is None:
        yield "evaluate.judge: AlpacaEval has no score without a judge"
    yield from _benchmark_data(suite, spec.data_dir)


def _benchmark_data(suite: list[Benchmark], given: str | None) -> Iterator[str]:
    from deltalearn.errors import UserError
    from deltalearn.evaluate.tulu3.sources import data_directory
    from deltalearn.evaluate.tulu3.suite import local_pattern

    try:
        directory = data_directory(given)
    except UserError as error:
        yield f"evaluate.data_dir: {error}"
        return
    if directory is None:
        if suite:
            yield (
                f"data of {len(suite)} benchmarks: downloaded from the Hugging Face hub, or name "
                "a local copy in evaluate.data_dir"
            )
        return
    for benchmark in suite:
        pattern = local_pattern(benchmark)
        if not any(directory.glob(pattern)):
            yield f"data of {benchmark.title}: no {pattern} in {directory}"
