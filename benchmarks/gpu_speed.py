"""Stages of `gpu.py` on the speed of tuning: beside TRL, and with all that may pay off."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_job import Job

LENGTHS = "ultrafeedback"
AUTO = {"gradient_checkpointing": "auto"}
# Safe ones first: an error of a kernel may end the process, and with it those behind it.
LEVERS: dict[str, dict[str, Any]] = {
    "auto": AUTO,
    "auto, forwards of 8k": {**AUTO, "token_budget": 8192},
    "kept activations, forwards of 4k": {"gradient_checkpointing": False, "token_budget": 4096},
    "half of the layers": {"gradient_checkpointing": 0.5},
    "kernels": {**AUTO, "kernels": "liger"},
    "compiled": {**AUTO, "compile": True},
    "kernels, compiled": {**AUTO, "kernels": "liger", "compile": True},
    "float8, compiled": {**AUTO, "float8": True, "compile": True},
    "float8": {**AUTO, "float8": True},
    "auto, forwards of 32k": {**AUTO, "token_budget": 32768},
}
ON_GPU = ("kernels", "compile", "float8")
RIVALS: dict[str, dict[str, Any]] = {  # TRL with adapters; padding_free of its DPO is off since 1.0
    "batch 4": {"trl_batch": 4},
    "batch 16": {"trl_batch": 16},
    "kept activations, batch 2": {"trl_batch": 2, "gradient_checkpointing": False},
}


def lora(job: Job) -> None:
    """DPO with adapters: ours, then TRL, on the same pairs in the same order."""
    contest(job, "lora")


def full(job: Job) -> None:
    """DPO of all weights, with an optimiser whose state fits one card."""
    contest(job, "full")


def contest(job: Job, mode: str) -> None:
    """Our side, then TRL's, with the kernels of liger too if they are here; then the ratio."""
    from contest import agreement, timed_seconds

    comparison, work = ready(job, mode)
    sides: dict[str, dict[str, Any]] = {"ours": {"side": "ours"}, "trl": {"side": "trl"}}
    if job.device == "cuda" and importlib.util.find_spec("liger_kernel"):
        sides["trl, liger"] = {"side": "trl", "trl_liger": True}
    found: dict[str, Any] = {}
    for name, changes in sides.items():
        with job.told(mode=mode, side=name):
            side, place = changes["side"], job.directory / name.replace(", ", "-")
            told = {**work.job, **{k: v for k, v in changes.items() if k != "side"}}
            found[name] = comparison.child(side, place, **told)
            job.say(mode=mode, side=name, **measured(work, found[name], comparison))
    peers = [found[name] for name in found if name != "ours"]
    if "ours" in found and peers:
        best = min(peers, key=timed_seconds)
        same = agreement(found["ours"], best, comparison.tolerance)
        ratio = timed_seconds(best) / timed_seconds(found["ours"])
        job.say(mode=mode, ratio=round(ratio, 2), **same)


def rivals(job: Job) -> None:
    """TRL in further configurations: the best of all is its number."""
    comparison, work = ready(job, "lora")
    liger = {"trl_liger": job.device == "cuda" and bool(importlib.util.find_spec("liger_kernel"))}
    for name, changes in RIVALS.items():
        if job.tiny and changes["trl_batch"] != 2:  # on a CPU one of them is enough
            continue
        with job.told(rival=name):
            place = job.directory / name.replace(" ", "-")
            found = comparison.child("trl", place, **{**work.job, **liger, **changes})
            job.say(rival=name, **liger, **measured(work, found, comparison))


def levers(job: Job) -> None:
    """Our side of `lora` again, with each setting of speed that may pay off, one after another.

    In one process, which reads the libraries once; the reference is scored once for all that score
    alike. Losses of each are held against those of the first.
    """
    import torch
    from sides import run_ours

    comparison, work = ready(job, "lora")
    first: Sequence[float] | None = None
    for at, (name, changes) in enumerate(LEVERS.items()):
        if job.tiny and any(key in changes for key in ON_GPU):
            continue
        with job.told(lever=name):
            place = job.directory / f"lever-{at}"
            place.mkdir()
            found = run_ours({
                **comparison.settings, **work.job, "ours": changes, "out": str(place / "out"),
                "reference": str(job.directory / "reference.sqlite"),
            })  # fmt: skip
            if "compile" in changes:  # or the graphs of several settings would be too many
                torch.compiler.reset()
            first = first or found["losses"]
            apart = max(abs(a - b) for a, b in zip(found["losses"], first, strict=True))
            job.say(lever=name, loss_apart=apart, **measured(work, found, comparison))


def ready(job: Job, mode: str) -> tuple[Any, Any]:
    """The comparison of one mode on the drawn model, and its work."""
    import tune_vs_trl_gpu as peer

    arguments = ["--mode", mode, "--shape", job.shape, *(["--tiny"] if job.tiny else [])]
    options = peer.parse(arguments)
    model, gemm = drawn(job, options)
    settings = {**peer.settings_of(options), "model": str(model)}
    comparison = peer.contest_of(options, settings, mode, gemm, limit=lambda: max(1.0, job.left))
    work = comparison.work(LENGTHS, job.directory)
    work.job["trl_batch"] = options.trl_batch or 8  # the fastest seen; `rivals` tries others
    return comparison, work


def measured(work: Any, found: dict[str, Any], comparison: Any) -> dict[str, Any]:
    """Rates of one side beside what it answered; the peak is that of matrix products.

    Of ours also what it had foretold: memory in its line before the start, and the time of the
    second half of the steps from the speed of the first.
    """
    from common import useful_flops
    from contest import timed_seconds

    seconds = timed_seconds(found)
    rates = {
        "pairs_per_s": round(len(work.timed) / seconds, 3),
        "tokens_per_s": round(work.tokens / seconds),
        "share_of_peak": round(work.flops / seconds / comparison.gemm(), 3),
    }
    if "said" in found:
        rates["memory_estimated_mb"] = estimated(found["said"])
        rates["memory_peak_mb"] = round(found["peak_memory_mb"])
        size, steps = comparison.settings["batch_size"], found["step_seconds"][1:]
        half = max(1, len(steps) // 2)
        if len(steps) > half:
            seen, rest = work.timed[: half * size], work.timed[half * size :]
            gradients = not comparison.settings["lora"]
            flops = [useful_flops(comparison.config, part, gradients) for part in (seen, rest)]
            rates["seconds_estimated"] = round(sum(steps[:half]) / flops[0] * flops[1], 3)
            rates["seconds_measured"] = round(sum(steps[half:]), 3)
    return {**rates, **found}


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
        limit = max(1.0, job.left)
        built = in_child(peer.__file__, told, job.directory / "build", options.threads, limit)
        job.say(built=built, seconds=round(time.monotonic() - began, 1))
        known.write_text(json.dumps(built))
    return place, json.loads(known.read_text())["gemm"]


def estimated(said: Sequence[str]) -> int | None:
    """What our side said before it began of the memory it would need, in MB of 10^6 bytes."""
    found = (re.search(r"memory .*?([\d.]+) GiB", line) for line in said)
    return next((round(float(f[1]) * 1073.7) for f in found if f), None)
