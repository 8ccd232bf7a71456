"""A small finished run directory without any model, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deltalearn.evaluate.harness.results import summary, write_items, write_results
from deltalearn.evaluate.reference.benchmark import QuestionBenchmark
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.pairs import write_pairs
from deltalearn.records import Message, Pair, Response
from deltalearn.util.files import write_json, write_jsonl

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'

# Distinct numbers, so that each can be found on the page.
PROMPT_COUNTS = {"read": 9001, "duplicates": 311, "rejected": 312, "not_selected": 313}
PROMPT_COUNTS |= {"final_answers_removed": 314, "prompts": 8001}
RESPONSE_COUNTS = {"requests": 8001, "cached": 21, "generated": 7980, "errors": 411}
RESPONSE_COUNTS |= {"truncated": 412, "tokens": 99999}
PAIR_DROPS = {"missing": 511, "error": 512, "empty": 513, "truncated": 514, "identical": 515}
PAIR_DROPS |= {"length_difference": 516, "a_reason_of_the_future": 517}
PAIR_SIDES = {"empty:chosen": 611, "empty:rejected": 612, "truncated:both": 613}
TUNE_DROPS = {"too_long": 711, "empty": 712, "identical_ids": 713}


def make_run(
    run: Path,
    *,
    effects: dict[str, float | None],
    models: tuple[str, str] = ("large", "small"),
    metrics: tuple[str, ...] = ("expected_accuracy", "greedy_accuracy"),
    tasks: tuple[str, ...] = ("add", "sort"),
    seeds: tuple[int, ...] = (0, 1),
    texts: tuple[str, ...] = ("question", "good answer", "bad"),
    steps: int = 20,
    pairs: int = 30,
) -> Path:
    """A finished run. `effects`: arm -> what it adds to base's scores; None: noise around zero.

    The arm `sft` is supervised. `texts`: the prompt, the chosen and the rejected answer.
    """
    chosen, rejected = models
    arms = {"base": {"chosen": None, "rejected": None, "tune": {}}}
    for arm in effects:
        tune = {"method": "sft"} if arm == "sft" else {}
        arms[arm] = {"chosen": chosen, "rejected": rejected, "tune": tune}
    _write_manifest(run, arms, models, metrics, seeds, pairs)
    (run / "recipe.yaml").write_text(f"name: demo # {SCRIPT}\n", encoding="utf-8")
    reject = {"where": f"p.jsonl:3 {SCRIPT}", "reason": f"not a prompt {IMAGE}", "row": SCRIPT}
    write_jsonl(run / "prompts.rejects.jsonl", [reject])
    table = run / "pairs" / f"{chosen}_over_{rejected}.parquet"
    write_pairs(table, _pairs(pairs, *texts), chosen, rejected)
    _write_all_scores(run, effects, models, metrics, tasks, seeds)
    for arm in effects:
        for seed in seeds:
            folder = run / "arms" / arm / f"seed-{seed}"
            folder.mkdir(parents=True)
            write_jsonl(folder / "log.jsonl", _log(steps, seed, arm == "sft"))
    return run


def _write_manifest(run, arms, models, metrics, seeds, pairs) -> None:
    def stage(counts: dict[str, Any]) -> dict[str, Any]:
        return {"key": "k", "outputs": [], "finished": "then", "seconds": 1.5, "counts": counts}

    pair_counts = {"candidates": 7999, "pairs": pairs, "dropped": PAIR_DROPS}
    tune_counts = {"pairs": pairs, "examples": pairs, "dropped": TUNE_DROPS}
    tune_counts |= {"altered_answers": 811, "steps": 20, "last": {"loss": 0.5}}
    tuned = [(arm, seed) for arm in arms if arm != "base" for seed in seeds]
    stages = {"prompts": PROMPT_COUNTS}
    stages |= {f"generate/{model}": RESPONSE_COUNTS for model in models}
    stages[f"pairs/{models[0]}_over_{models[1]}"] = {**pair_counts, "dropped_by_side": PAIR_SIDES}
    stages |= {f"tune/{arm}/seed-{seed}": tune_counts for arm, seed in tuned}
    spec = {"path": "some/model", "revision": None}
    tune = {"method": "dpo_norm", "max_grad_norm": 1.0, "lr": 5e-7, "steps": None, "epochs": None}
    recipe = {
        "name": "demo",
        "seeds": list(seeds),
        "device": "cuda",
        "dtype": "bfloat16",
        "student": spec,
        "models": dict.fromkeys(models, spec),
        "generate": {"temperature": 0, "top_p": 1, "max_tokens": 9, "samples": 1, "seed": 0},
        "tune": {**tune, "batch_size": 32},
        "arms": arms,
        "evaluate": {"bootstrap": 300},
    }
    manifest = {
        "format": 1,
        "name": "demo",
        "deltalearn": "0.0",
        "versions": {"torch": "9.9"},
        "python": "3.11",
        "machine": {"cpu": SCRIPT},
        "created": "then",
        "seeds": list(seeds),
        "recipe": recipe,
        "models": {name: {"path": "some/model", "fingerprint": "f" * 64} for name in models},
        "stages": {name: stage(counts) for name, counts in stages.items()},
    }
    write_json(run / "run.json", manifest)


def _pairs(number: int, prompt: str, chosen: str, rejected: str) -> list[Pair]:
    def response(text: str, tokens: int) -> Response:
        return Response("key", text, tuple(range(tokens)), "stop", 5)

    messages = (Message(role="system", content=prompt), Message(role="user", content=prompt))
    sides = response(chosen, 4), response(rejected, 3)
    return [Pair(f"{prompt[:40]}-{i}", 0, messages, *sides) for i in range(number)]


def _write_all_scores(run, effects, models, metrics, tasks, seeds) -> None:
    items = 40 * len(tasks)
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.6, items)

    def write(place: str, values: np.ndarray) -> None:
        empty = {"cluster": "", "prompt": "q", "output": "", "extracted": "", "gold": "a"}
        rows = [
            {"id": str(i), "stratum": tasks[i % len(tasks)], "score": float(v), **empty}
            for i, v in enumerate(values)
        ]
        entries = {}
        for metric in metrics:
            benchmark = QuestionBenchmark("questions", metric, SCORERS["exact"])
            write_items(run / "scores" / place, benchmark.name, rows)
            entries[benchmark.name] = summary(benchmark, rows)
        model = {"name": f"demo/{place}", "path": place, "identity": place}
        results = {"model": model, "split": "test", "benchmarks": entries}
        write_results(run / "scores" / place, results)

    write("models/student", base)
    for place, model in enumerate(models):
        write(f"models/{model}", base - 0.1 * (place + 1))
    for arm, effect in effects.items():
        # Noise that is exactly even around zero: its interval cannot miss zero.
        noise = np.repeat([0.05, -0.05], items // 2) if effect is None else 0.0
        for seed in seeds:
            write(f"arms/{arm}/seed-{seed}", base + noise + (effect or 0.0) + 0.001 * (seed % 2))


def _log(steps: int, seed: int, supervised: bool) -> list[dict[str, float]]:
    rows = []
    for step in range(steps):
        done = (step + seed / 10) / steps
        loss = 0.7 - 0.3 * done + 0.01 * (step * 7919 % 13)  # rough, as batches are
        row = {"step": step + 1, "lr": 1e-6, "loss": loss, "grad_norm": 2.0}
        if not supervised:
            row |= {"margin": 1 - loss, "accuracy": 0.5 + 0.4 * done}
            row |= {"chosen_logratio": -0.1 * done, "rejected_logratio": -0.4 * done}
        rows.append(row)
    return rows
