"""Stage `profile` of `gpu.py`: where the time of a training step goes."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_job import Job
from gpu_speed import AUTO, ready

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace
KINDS = {  # of kernels, by their names; the first that matches counts
    "attention": r"flex|triton_tem|flash|fmha|attention|sdpa",
    "products": r"gemm|cutlass|cublas|nvjet|xmma|wgmma|s\d+816|\bmm\b|addmm|bmm",
    "copies": r"memcpy|memset|copy_|_to_copy",
}
HEAD = "part: head"
PARTS = {"head": HEAD, "optimizer": "Optimizer.step"}  # what names of annotations begin with


def profile(job: Job) -> None:
    """One step as a trace, as in `lora` and with `auto`, and where the host waits."""
    from sides import run_ours

    comparison, work = ready(job, "lora")
    for name, changes in {"as in lora": {}, "auto": AUTO}.items():
        with job.told(settings=name), marked():
            place = job.directory / name.replace(" ", "-")
            place.mkdir()
            with watched(job, name, place):
                run_ours({
                    **comparison.settings, **work.job, "ours": changes, "out": str(place / "out"),
                    "reference": str(job.directory / "reference.sqlite"),
                })  # fmt: skip


@contextmanager
def watched(job: Job, name: str, place: Path) -> Iterator[None]:
    """Count the waits of the second step, and trace the third."""
    from deltalearn.tune.loop import Run

    plain = Run.step

    def step(run: Run, number: int, stop: bool) -> dict[str, Any]:
        if number == 1:
            with waits() as places:
                record = plain(run, number, stop)
            job.say(settings=name, host_waits=sum(places.values()), places=places.most_common(10))
            return record
        if number != 2:
            return plain(run, number, stop)
        trace = place / "trace.json"
        record = traced(lambda: plain(run, number, stop), job.device, trace)
        events = list(read_trace(trace))
        trace.unlink()
        job.say(settings=name, **where_time_goes(events))
        return record

    Run.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run.step = plain  # type: ignore[method-assign]


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Collect where the host waits for the GPU within the block; nothing without one."""
    import torch

    places: Counter[str] = Counter()
    if not torch.cuda.is_available():
        yield places
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in seen:
        if "synchroniz" in str(warning.message):
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


@contextmanager
def marked() -> Iterator[None]:
    """Give the head, forward and backward, a name in traces; an optimiser has one."""
    from torch.autograd.profiler import record_function

    from deltalearn.lm import forward, head

    def named(function: Callable, name: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return function(*args, **kwargs)

        return call

    scoring, backward = forward.token_logprobs, head._LinearLogprobs.backward
    forward.token_logprobs = named(scoring, HEAD)
    head._LinearLogprobs.backward = staticmethod(named(backward, HEAD))
    try:
        yield
    finally:
        forward.token_logprobs = scoring
        head._LinearLogprobs.backward = staticmethod(backward)


def traced(work: Callable[[], Any], device: str, file: Path) -> Any:
    """Do the work, its trace written to a file."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profiled(activities=activities) as seen:
        result = work()
    seen.export_chrome_trace(str(file))
    return result


@dataclass
class Event:
    """Something of a trace, in microseconds; `own` is without what it calls itself."""

    kind: str
    name: str
    start: float
    end: float
    thread: object = None
    own: float = 0.0


def read_trace(file: Path) -> Iterator[Event]:
    """The events of a trace that have a duration."""
    for event in json.loads(file.read_text())["traceEvents"]:
        if event.get("ph") == "X" and "dur" in event:
            start = float(event["ts"])
            end = start + float(event["dur"])
            yield Event(event.get("cat", ""), event["name"], start, end, event.get("tid"))


def where_time_goes(events: Sequence[Event], shown: int = 25) -> dict[str, Any]:
    """Shares of the span from the first kernel to the last: kinds and parts, and idle time.

    Without a GPU in the trace the operations of the CPU count as kernels, each with its own time.
    Parts cut across kinds: a product of the head is both.
    """
    work = sorted((e for e in events if e.kind in ON_DEVICE), key=lambda e: e.start)
    marks = "gpu_user_annotation"
    if not work:
        work = sorted((e for e in events if e.kind == "cpu_op"), key=lambda e: (e.start, -e.end))
        marks = "user_annotation"
    if not work:
        return {"error": "the trace has no kernels"}
    take_own(work)
    span = max(e.end for e in work) - work[0].start
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for event in work:
        times[event.name] += event.own  # type: ignore[assignment]
        calls[event.name] += 1
        kinds[kind_of(event.name)] += event.own  # type: ignore[assignment]
    parts = {}
    for part, mark in PARTS.items():
        inside = [e for e in events if e.kind == marks and e.name.startswith(mark)]
        parts[part] = sum(
            e.own for e in work if any(m.start <= (e.start + e.end) / 2 <= m.end for m in inside)
        )
    return {
        "milliseconds": round(span / 1e3, 2),
        "idle": round(1 - union(work) / span, 4),
        "kinds": {name: round(time / span, 4) for name, time in kinds.most_common()},
        "parts": {name: round(time / span, 4) for name, time in parts.items()},
        "kernels": [
            {"name": name[:90], "share": round(time / span, 4), "calls": calls[name]}
            for name, time in times.most_common(shown)
        ],
    }


def kind_of(name: str) -> str:
    """The kind of a kernel."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, "others")


def take_own(events: Sequence[Event]) -> None:
    """Fill in the own time of events, sorted by their start, the longer first."""
    open_calls: dict[object, list[Event]] = {}
    for event in events:
        event.own = event.end - event.start
        callers = open_calls.setdefault(event.thread, [])
        while callers and callers[-1].end <= event.start:
            callers.pop()
        if callers and event.end <= callers[-1].end:
            callers[-1].own -= event.own
        callers.append(event)


def union(events: Sequence[Event]) -> float:
    """Time in which any of the events, sorted by their start, is under way."""
    total, reached = 0.0, float("-inf")
    for event in events:
        total += max(0.0, event.end - max(event.start, reached))
        reached = max(reached, event.end)
    return total
