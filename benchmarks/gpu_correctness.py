"""Stage `correctness` of `gpu.py`: one step must stay the same step, however it is computed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from gpu_job import LAB, Job

# Flex has no gradients on a CPU, a compiler of C++ takes a minute, the others need a GPU.
NOT_ON_A_CPU = ("shared-flex", "shared-compiled", "shared-kernels", "shared-float8")


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
            if job.tiny and name in NOT_ON_A_CPU:
                continue
            began = time.monotonic()
            with job.told(dtype=dtype, way=name):  # one way that fails must not hide the others
                found = losses_of(
                    job, pairs, f"{dtype}-{name}", steps, job.device, dtype, **changes
                )
                expected = truth["lora" if "lora.r" in changes else "all"]
                apart = [
                    max(abs(a[at] - b[at]) for a, b in zip(found, expected, strict=True))
                    for at in (0, 1)
                ]
                job.say(
                    dtype=dtype, way=name, seconds=round(time.monotonic() - began, 1),
                    first_loss=found[0][0], loss_apart=apart[0], norm_apart=apart[1],
                )  # fmt: skip
    with job.told(what="resume"):
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
        ("shared-some-checkpointing", {**shared, "gradient_checkpointing": 0.5}),
        ("shared-auto-checkpointing", {**shared, "gradient_checkpointing": "auto"}),
        ("shared-kernels", {**shared, "kernels": "liger"}),
        ("shared-compiled", {**shared, "compile": True}),
        ("shared-lora", {**shared, "lora.r": 4}),
        ("shared-qlora", {**shared, "lora.r": 4, "lora.bits": 4}),
        *([("shared-float8", {**shared, "float8": True})] if dtype == "bfloat16" else []),
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
