"""What `gpu.py` measures on a GPU, most valuable first; each stage runs in a process of its own.

A stage says what it finds through `Job.say`, a line of JSON each, as soon as it is found.
"""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from gpu_correctness import correctness
from gpu_job import Job, Stage
from gpu_profile import profile
from gpu_speed import drawn, full, levers, lora, rivals


def answer(job: str) -> None:
    """Run the stage of a job that is JSON of `Job`."""
    told = Job(**json.loads(job))
    told.directory.mkdir(parents=True)
    STAGES[told.stage].run(told)


def generation(job: Job) -> None:
    """Tokens a second of our engines with a model of the 1B shape, drawn at random."""
    import tune_vs_trl_gpu as peer

    from deltalearn.util.files import write_jsonl

    options = peer.parse(["--shape", "1b", *(["--tiny"] if job.tiny else [])])
    model, _ = drawn(job, options)
    count, tokens = (16, 16) if job.tiny else (512, 256)
    words = " aaa aab aac aad" * 20
    prompts = job.directory / "prompts.jsonl"
    write_jsonl(prompts, ({"id": str(i), "prompt": f"{words} {i}"} for i in range(count)))
    told = [f"models.drawn.path={model}", f"prompts.source={prompts}", f"device={job.device}",
            f"generate.max_tokens={tokens}", "generate.temperature=1.0"]  # fmt: skip
    budgets = (8192,) if job.tiny else (65536, 262144)
    ways: dict[str, list[str]] = {f"budget {n}": [f"generate.token_budget={n}"] for n in budgets}
    if importlib.util.find_spec("vllm") is None:
        job.say(engine="vllm", absent="not installed here")
    else:
        ways["vllm"] = ["generate.engine=vllm"]
    for name, changes in ways.items():
        with job.told(engine=name):
            made, seconds = generated(job.directory / name.replace(" ", "-"), [*told, *changes])
            job.say(engine=name, seconds=round(seconds, 1), answers=count, tokens=made,
                    tokens_per_s=round(made / seconds))  # fmt: skip


def generated(out: Path, settings: list[str]) -> tuple[int, float]:
    """(tokens, seconds) of a run of `generate`, loading included."""
    from deltalearn import api

    began = time.monotonic()
    api.generate(None, out, settings)
    return answered(out), time.monotonic() - began


def answered(out: Path) -> int:
    """Tokens of all answers in a store."""
    import sqlite3

    with sqlite3.connect(out / "responses.sqlite") as store:
        return store.execute(
            "select sum(coalesce(completion_tokens, length(token_ids) / 4)) from responses"
        ).fetchone()[0]


def lab(job: Job) -> None:
    """A ladder of larger models, trained from scratch on the device, and delta learning on it."""
    from deltalearn import api
    from deltalearn.lab.pretrain import Rung, pretrain_ladder

    rungs = [
        Rung("xs", 0.25, width=256, layers=6, steps=1200, lr=1e-3, seed=1),
        Rung("s", 0.45, width=384, layers=6, steps=1500, lr=1e-3, seed=2),
        Rung("m", 0.55, width=512, layers=8, steps=3000, lr=1e-3, seed=3),
    ]
    if job.tiny:
        rungs = [Rung(r.name, r.expert_share, 32, 1, 20, 5e-3, r.seed, 32) for r in rungs]
    began = time.monotonic()
    ladder = job.directory / "ladder"
    manifest = pretrain_ladder(ladder, rungs=rungs, workers=len(rungs), device=job.device)
    job.say(ladder=manifest["models"], ordered=manifest["ordered"],
            seconds=round(time.monotonic() - began, 1))  # fmt: skip
    settings: list[str] = []
    seeds, steps = ([0], 2) if job.tiny else ([0, 1, 2, 3, 4], 80)
    if job.tiny:
        settings = ["prompts.limit=1000", "evaluate.questions.lab.limit=55", "pairs.truncated=keep"]
    paths = {"student": "m", "models.s": "s", "models.xs": "xs"}
    settings += [f"{key}.path={ladder / name}" for key, name in paths.items()]
    out = job.directory / "run"
    api.run("lab", out, [
        *settings, f"device={job.device}", f"seeds={seeds}", f"tune.steps={steps}",
        f"tune.lr={1.5e-4 if job.tiny else 3e-5}",
    ], say=lambda line: print(line, flush=True))  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    seconds = round(time.monotonic() - began, 1)
    job.say(seconds=seconds, arms={name: headline(arm) for name, arm in summary["arms"].items()})


def headline(arm: dict[str, Any]) -> dict[str, Any]:
    """An arm's means over all tasks, and their difference from the untouched student."""
    found = {name: value["mean"] for name, value in arm.items() if name.startswith("lab.")}
    gains = arm.get("diff_vs_base", {})
    return found | {
        f"{name} gain": {key: gains[name][key] for key in ("mean", "lo", "hi")}
        for name in found
        if name in gains
    }


STAGES = {
    "correctness": Stage(correctness, 110),
    "lora": Stage(lora, 260),
    "levers": Stage(levers, 240),
    "profile": Stage(profile, 90),
    "rivals": Stage(rivals, 200),
    "generation": Stage(generation, 60),
    "lab": Stage(lab, 200),
    "full": Stage(full, 240),
}
