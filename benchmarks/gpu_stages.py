"""What `gpu.py` measures on a GPU, most valuable first; each stage runs in a process of its own.

A stage says what it finds through `Job.say`, a line of JSON each, as soon as it is found.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ChildFailed

LAB = "package://deltalearn.lab/ladder"
LENGTHS = "ultrafeedback"


@dataclass(frozen=True)
class Stage:
    """A stage: what it does, its time limit on a GPU, and that of a run on a CPU."""

    run: Callable[[Job], None]
    seconds: int
    tiny_seconds: int = 90


@dataclass(frozen=True)
class Job:
    """What a stage is told by `gpu.py`; `until` is the Unix time at which it is cut."""

    stage: str
    lines: str
    work: str
    shape: str
    tiny: bool
    until: float

    @property
    def device(self) -> str:
        """Where models compute: a GPU, or a CPU to show that all runs."""
        return "cpu" if self.tiny else "cuda"

    @property
    def directory(self) -> Path:
        """The stage's own place for files."""
        return Path(self.work) / self.stage

    @property
    def left(self) -> float:
        """Seconds until the stage is cut."""
        return self.until - time.time()

    def say(self, **found: Any) -> None:
        """Append a finding to the results, safe from whatever comes next."""
        with Path(self.lines).open("a") as lines:
            lines.write(json.dumps({"stage": self.stage, **found}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())


def answer(job: str) -> None:
    """Run the stage of a job that is JSON of `Job`."""
    told = Job(**json.loads(job))
    told.directory.mkdir(parents=True)
    STAGES[told.stage].run(told)


# Correctness ------------------------------------------------------------------------------------


def correctness(job: Job) -> None:
    """Losses of every layout, attention and precision on the device, beside the CPU's in float32.

    The lab's student on the lab's pairs, so nothing is needed but the package. Afterwards a run
    that is stopped half-way and resumed, beside one that is not.
    """
    pairs = lab_pairs(job)
    steps = 3 if job.tiny else 8
    truth = {
        "all": losses_of(job, pairs, "truth", steps, "cpu", "float32", layout="padded"),
        "lora": losses_of(
            job, pairs, "truth-lora", steps, "cpu", "float32", **{"layout": "padded", "lora.r": 4}
        ),
    }
    for dtype in ("float32", "bfloat16", "float16"):
        if job.tiny and dtype == "float16":
            continue  # a GPU's: no scaler for gradients on a CPU
        for name, changes in ways(dtype):
            if job.tiny and name in ("shared-flex", "shared-compiled"):
                continue  # flex has no gradients on a CPU; a compiler of C++ takes a minute
            began = time.monotonic()
            try:
                found = losses_of(
                    job, pairs, f"{dtype}-{name}", steps, job.device, dtype, **changes
                )
            except Exception as error:  # one way that fails must not hide the others
                job.say(dtype=dtype, way=name, error=f"{type(error).__name__}: {error}"[:400])
                continue
            expected = truth["lora" if "lora.r" in changes else "all"]
            apart = [
                max(abs(a[at] - b[at]) for a, b in zip(found, expected, strict=True))
                for at in (0, 1)
            ]
            job.say(
                dtype=dtype, way=name, seconds=round(time.monotonic() - began, 1),
                first_loss=found[0][0], loss_apart=apart[0], norm_apart=apart[1],
            )  # fmt: skip
    job.say(resume=resumed(job, pairs))


def ways(dtype: str) -> list[tuple[str, dict[str, Any]]]:
    """Settings under which one step must stay the same step."""
    layouts = [(layout, {"layout": layout}) for layout in ("padded", "packed", "shared")]
    if dtype == "float16":
        return layouts
    shared: dict[str, Any] = {"layout": "shared"}
    return [
        *layouts,
        ("shared-sdpa", {**shared, "attention": "sdpa"}),
        ("shared-flex", {**shared, "attention": "flex"}),
        ("shared-checkpointing", {**shared, "gradient_checkpointing": True}),
        ("shared-compiled", {**shared, "compile": True}),
        ("shared-lora", {**shared, "lora.r": 4}),
        ("shared-qlora", {**shared, "lora.r": 4, "lora.bits": 4}),
    ]


def lab_pairs(job: Job) -> Path:
    """Pairs of the lab's two weak models, answered on the device."""
    from deltalearn import api

    began = time.monotonic()
    models = [f"models.{name}.path={LAB}/{name}" for name in ("s", "xs")]
    prompts = [f"prompts.source={LAB}/prompts.jsonl", f"prompts.limit={80 if job.tiny else 400}"]
    settings = ["generate.max_tokens=16", "generate.temperature=1.0", "dtype=float32"]
    place = job.directory / "answers"
    api.generate(None, place, [*models, *prompts, *settings, f"device={job.device}"])
    pairs = job.directory / "pairs.parquet"
    api.build_pairs(place, "s", "xs", pairs)
    job.say(generated_in=round(time.monotonic() - began, 1))
    return pairs


def losses_of(
    job: Job, pairs: Path, name: str, steps: int, device: str, dtype: str, **changes: Any
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of a short run."""
    from deltalearn import api

    settings = {"lr": 1e-4, "steps": steps, "batch_size": 32, "device": device, "dtype": dtype}
    told = [f"{key}={json.dumps(value)}" for key, value in {**settings, **changes}.items()]
    out = job.directory / name
    api.tune(f"{LAB}/m", pairs, out, told, say=lambda line: None)
    return [(row["loss"], row["grad_norm"]) for row in logged(out)]


def logged(out: Path) -> list[dict[str, float]]:
    """Lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def resumed(job: Job, pairs: Path) -> dict[str, Any]:
    """How far the weights of a run that was stopped and resumed are from an unbroken one's."""
    import threading

    from safetensors.torch import load_file

    from deltalearn import api

    steps = 6 if job.tiny else 20
    told = [f"steps={steps}", "lr=1e-4", "batch_size=8", "checkpoint_every=1",
            f"device={job.device}", "dtype=float32"]  # fmt: skip
    whole, halved = job.directory / "whole", job.directory / "halved"
    api.tune(f"{LAB}/m", pairs, whole, told, say=lambda line: None)

    def stop() -> None:
        while not (halved / "log.jsonl").exists() or len(logged(halved)) < steps // 2:
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    threading.Thread(target=stop, daemon=True).start()
    stopped_after = None
    try:
        api.tune(f"{LAB}/m", pairs, halved, told, say=lambda line: None)
    except (KeyboardInterrupt, SystemExit):
        stopped_after = len(logged(halved))
    api.tune(f"{LAB}/m", pairs, halved, told, say=lambda line: None)
    weights = [load_file(out / "final" / "model.safetensors") for out in (whole, halved)]
    apart = max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0])
    return {"stopped_after": stopped_after, "steps": steps, "largest_difference": apart}


# Speed ------------------------------------------------------------------------------------------


def lora(job: Job) -> None:
    """DPO with adapters: ours, then TRL, on the same pairs in the same order."""
    contest(job, "lora")


def levers(job: Job) -> None:
    """Our side of `lora` again, with each setting of speed that may pay off, one after another."""
    ways: dict[str, dict[str, Any]] = {
        "kept activations": {"gradient_checkpointing": False, "token_budget": 4096},
        "kept activations, compiled": {
            "gradient_checkpointing": False, "token_budget": 4096, "compile": True,
        },
        "compiled": {"compile": True},
        "larger forwards": {"token_budget": 32768},
    }  # fmt: skip
    comparison, work = ready(job, "lora")
    for name, changes in ways.items():
        if job.tiny and "compile" in changes:
            continue
        try:
            found = comparison.child("ours", job.directory / name, **work.job, ours=changes)
        except ChildFailed as failed:  # out of memory, say: the next may fit
            job.say(lever=name, error=str(failed)[-600:])
            continue
        job.say(lever=name, **measured(work, found, comparison))


def full(job: Job) -> None:
    """DPO of all weights, with an optimiser whose state fits one card."""
    contest(job, "full")


def contest(job: Job, mode: str) -> None:
    """Both sides of `tune_vs_trl_gpu.py`, each said as soon as it is through, then their ratio."""
    from contest import agreement, timed_seconds

    comparison, work = ready(job, mode)
    found: dict[str, Any] = {}
    for side in ("ours", "trl"):
        found[side] = comparison.child(side, job.directory / side, **work.job)
        job.say(mode=mode, side=side, **measured(work, found[side], comparison))
    ratio = timed_seconds(found["trl"]) / timed_seconds(found["ours"])
    same = agreement(found["ours"], found["trl"], comparison.tolerance)
    job.say(mode=mode, ratio=round(ratio, 2), **same)


def ready(job: Job, mode: str) -> tuple[Any, Any]:
    """The comparison of one mode on the drawn model, and its work."""
    import tune_vs_trl_gpu as peer

    arguments = ["--mode", mode, "--shape", job.shape, *(["--tiny"] if job.tiny else [])]
    options = peer.parse(arguments)
    model, gemm = drawn(job, options)
    settings = {**peer.settings_of(options), "model": str(model)}
    comparison = peer.contest_of(options, settings, mode, gemm, limit=lambda: job.left)
    work = comparison.work(LENGTHS, job.directory)
    work.job["trl_batch"] = options.trl_batch or 8  # the fastest seen; a probe takes minutes
    return comparison, work


def measured(work: Any, found: dict[str, Any], comparison: Any) -> dict[str, Any]:
    """Rates of one side beside what it answered; the peak is that of matrix products."""
    from contest import timed_seconds

    seconds = timed_seconds(found)
    return {
        "pairs_per_s": round(len(work.timed) / seconds, 3),
        "tokens_per_s": round(work.tokens / seconds),
        "share_of_peak": round(work.flops / seconds / comparison.gemm(), 3),
        "estimated_memory_mb": estimated(found.get("said", [])),
        **found,
    }


def drawn(job: Job, options: Any) -> tuple[Path, float]:
    """The model of the shape, drawn by the first stage that needs it, and the GEMM peak."""
    import tune_vs_trl_gpu as peer
    from common import in_child

    place = Path(job.work) / f"model-{options.shape}"
    known = Path(job.work) / f"model-{options.shape}.json"
    if not known.exists():
        began = time.monotonic()
        told = {**peer.settings_of(options), "model": str(place), "shape": options.shape,
                "side": "build"}  # fmt: skip
        built = in_child(peer.__file__, told, job.directory / "build", options.threads)
        job.say(built=built, seconds=round(time.monotonic() - began, 1))
        known.write_text(json.dumps(built))
    return place, json.loads(known.read_text())["gemm"]


def estimated(said: list[str]) -> int | None:
    """What our side said before it began of the memory it would need, in MB of 10^6 bytes."""
    found = (re.search(r"memory .*?([\d.]+) GiB", line) for line in said)
    return next((round(float(f[1]) * 1073.7) for f in found if f), None)


# Other stages -----------------------------------------------------------------------------------


def generation(job: Job) -> None:
    """Tokens a second of our transformers engine with a model of the 1B shape, drawn at random."""
    import tune_vs_trl_gpu as peer

    from deltalearn import api
    from deltalearn.util.files import write_jsonl

    options = peer.parse(["--shape", "1b", *(["--tiny"] if job.tiny else [])])
    model, _ = drawn(job, options)
    count, tokens = (16, 16) if job.tiny else (512, 256)
    words = " aaa aab aac aad" * 20
    prompts = job.directory / "prompts.jsonl"
    write_jsonl(prompts, ({"id": str(i), "prompt": f"{words} {i}"} for i in range(count)))
    for budget in (8192,) if job.tiny else (65536, 262144):
        out = job.directory / str(budget)
        began = time.monotonic()
        api.generate(None, out, [
            f"models.drawn.path={model}", f"prompts.source={prompts}", f"device={job.device}",
            f"generate.max_tokens={tokens}", f"generate.token_budget={budget}",
            "generate.temperature=1.0",
        ])  # fmt: skip
        seconds = time.monotonic() - began
        made = answered(out)
        job.say(budget=budget, seconds=round(seconds, 1), answers=count, tokens=made,
                tokens_per_s=round(made / seconds))  # fmt: skip


def answered(out: Path) -> int:
    """Tokens of all answers in a store."""
    import sqlite3

    with sqlite3.connect(out / "responses.sqlite") as store:
        return store.execute(
            "select sum(coalesce(completion_tokens, length(token_ids) / 4)) from responses"
        ).fetchone()[0]


def profile(job: Job) -> None:
    """Where the time of a training step goes: the kernels with the most time of their own."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from deltalearn.tune.loop import Run

    comparison, work = ready(job, "lora")
    on_gpu = job.device == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    plain, key = Run.step, "self_device_time_total" if on_gpu else "self_cpu_time_total"

    def step(run: Run, number: int, stop: bool) -> dict[str, Any]:
        if number != 2:
            return plain(run, number, stop)
        with profiled(activities=activities) as seen:
            record = plain(run, number, stop)
        kernels = sorted(seen.key_averages(), key=lambda k: -getattr(k, key))
        total = sum(getattr(k, key) for k in kernels)
        job.say(milliseconds=round(total / 1e3, 1), kernels=[
            {"name": k.key[:90], "share": round(getattr(k, key) / total, 4), "calls": k.count}
            for k in kernels[:25]
        ])  # fmt: skip
        return record

    Run.step = step  # type: ignore[method-assign]
    from sides import run_ours

    run_ours({**comparison.settings, **work.job, "out": str(job.directory / "out")})


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
    "generation": Stage(generation, 60),
    "lab": Stage(lab, 200),
    "full": Stage(full, 240),
}
