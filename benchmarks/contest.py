"""One comparison of the two sides: build the work, probe TRL, run both, check, and add up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    MIXES,
    ChildFailed,
    Sizes,
    draw_lengths,
    draw_texts,
    in_child,
    save_pairs,
    tokens_of,
    useful_flops,
)

TRL_BATCHES = (1, 2, 4, 8, 16)
TRL_DEFAULT = 8  # its per_device_train_batch_size, with gradient checkpointing on
KEEPING = {  # glibc's malloc told to keep freed memory, as our command line tells it
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
SHOWN = ("pairs_per_s", "tokens_per_s", "peak_memory_mb", "loaded_memory_mb", "reference_s")


@dataclass(frozen=True)
class Work:
    """What both sides do: `job` is told to them; `timed` and `flops` are of all steps but one.

    first_tokens: distinct tokens of the first step, which warms up.
    """

    job: dict[str, Any]
    timed: list[Sizes]
    flops: float
    first_tokens: int

    @property
    def tokens(self) -> int:
        """Distinct tokens of the timed steps."""
        return tokens_of(self.timed)


@dataclass(frozen=True)
class Contest:
    """What stays the same over the mixes.

    script: run for each child with `--job`. settings: of both sides, see `sides`. config: of the
    model in `settings["model"]`. gemm: measures FLOP/s of large matrix products. tolerance:
    largest relative difference of losses and gradient norms. scale: of the lengths. rounds: how
    often both sides run, in turn; the faster run of each counts. trl_keeps_memory: whether TRL is
    also run with glibc told to keep freed memory. limit: seconds that a child may take.
    """

    script: str
    settings: dict[str, Any]
    config: Any
    gemm: Callable[[], float]
    tolerance: dict[str, float]
    only: str | None = None
    scale: float = 1.0
    rounds: int = 1
    trl_keeps_memory: bool = False
    limit: Callable[[], float | None] = lambda: None

    def child(self, side: str, directory: Path, **changes: Any) -> dict[str, Any]:
        """Run one side in a process of its own."""
        job = {**self.settings, **changes, "side": side}
        return in_child(self.script, job, directory, self.settings["threads"], self.limit())

    def work(self, mix: str, directory: Path) -> Work:
        """Draw the pairs of a mix of lengths, and the order in which both sides take them."""
        from deltalearn.tune.schedule import batch_at

        s = self.settings
        lengths = draw_lengths(MIXES[mix], s["pairs"], s["max_length"], s["seed"], self.scale)
        pairs_file = directory / "pairs.parquet"
        save_pairs(pairs_file, draw_texts(lengths, self.config.vocab_size, s["seed"]))
        plan = [batch_at(i, s["pairs"], s["batch_size"], s["seed"]) for i in range(s["steps"])]
        order = [i for step in plan for i in step]
        job = {
            "pairs_file": str(pairs_file),
            # TRL takes its rows one after the other; those that no step reaches come last.
            "order": order + sorted(set(range(s["pairs"])) - set(order)),
        }
        timed = [lengths[i] for step in plan[1:] for i in step]
        mean = [round(sum(side) / len(timed)) for side in zip(*timed, strict=True)]
        print(
            f"\n{mix}: {len(timed)} timed pairs; mean words of prompt {mean[0]}, "
            f"chosen {mean[1]}, rejected {mean[2]}",
            flush=True,
        )
        flops = useful_flops(self.config, timed, weight_gradients=not s["lora"])
        return Work(job, timed, flops, tokens_of(lengths[i] for i in plan[0]))

    def run(self, mix: str, directory: Path) -> dict[str, Any]:
        """Compare the sides on one mix of lengths; prints a table, returns its numbers."""
        work = self.work(mix, directory)
        job, timed = work.job, work.timed
        peak, probed = self.gemm(), {}
        if self.only != "ours":
            probed = self.probe(job, directory)
            job["trl_batch"] = self.fastest(probed)
        runs = self.rounds_of(job, directory)
        found = {side: min(ran, key=timed_seconds) for side, ran in runs.items()}
        keeping = found.pop("trl, keeping memory", None)
        peak = max(peak, self.gemm())
        result = self.summary(found, timed, work.flops, peak)
        if "defaults" in probed and "ours" in found:
            theirs = work.first_tokens / probed["defaults"]["s_per_step"]
            result["ratio_to_trl_defaults"] = round(result["tokens_per_s"]["ours"] / theirs, 2)
        if keeping and "ours" in found:
            theirs = timed_seconds(keeping)
            result["ratio_to_trl_keeping_memory"] = round(theirs / timed_seconds(found["ours"]), 2)
        show(found, result)
        return {**result, "trl_micro_batch": job.get("trl_batch"), "trl_probe": probed}

    def rounds_of(self, job: dict[str, Any], directory: Path) -> dict[str, list[dict[str, Any]]]:
        """Every run of each side; on a machine shared with others they are better taken in turn."""
        sides: dict[str, tuple[str, dict[str, str]]] = {}
        if self.only != "ours":
            sides["trl"] = ("trl", {})
        if self.only != "ours" and self.trl_keeps_memory:
            sides["trl, keeping memory"] = ("trl", KEEPING)
        if self.only != "trl":
            sides["ours"] = ("ours", {})
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for turn in range(self.rounds):
            for name, (side, environment) in sides.items():
                place = directory / f"{name}-{turn}"
                runs[name].append(self.child(side, place, **job, environment=environment))
        return runs

    def probe(self, job: dict[str, Any], directory: Path) -> dict[str, dict[str, Any]]:
        """One TRL step with every micro-batch, and with TRL's defaults, each in a new process."""
        size, checkpointing = self.settings["batch_size"], self.settings["gradient_checkpointing"]
        if self.settings["trl_batch"]:
            return {}
        candidates = {str(b): (b, checkpointing) for b in TRL_BATCHES if size % b == 0}
        if size % TRL_DEFAULT == 0:
            candidates["defaults"] = (TRL_DEFAULT, True)
        probed = {}
        for name, (micro, checkpointed) in candidates.items():
            changes = {"trl_batch": micro, "gradient_checkpointing": checkpointed, "steps": 1}
            one = {**job, **changes, "order": job["order"][:size]}
            try:
                ran = self.child("trl", directory / f"probe-{name}", **one)
            except ChildFailed as failed:  # out of memory, most likely: then it is not the best
                print(f"  TRL, micro-batch {name}: {failed}", flush=True)
                continue
            seconds, memory = ran["step_seconds"][0], ran["peak_memory_mb"]
            probed[name] = {"s_per_step": round(seconds, 2), "peak_memory_mb": round(memory)}
            print(f"  TRL, micro-batch {name}: {seconds:.2f} s a step, peak {memory:,.0f} MB")
            sys.stdout.flush()
        return probed

    def fastest(self, probed: dict[str, dict[str, Any]]) -> int:
        """The micro-batch that TRL gets."""
        if self.settings["trl_batch"]:
            return self.settings["trl_batch"]
        seconds = {k: v["s_per_step"] for k, v in probed.items() if k != "defaults"}
        if not seconds:
            sys.exit("TRL ran with no micro-batch; what it said is above")
        return int(min(seconds, key=seconds.__getitem__))

    def summary(
        self,
        found: dict[str, dict[str, Any]],
        timed: Sequence[Sizes],
        flops: float,
        peak: float,
    ) -> dict[str, Any]:
        """The numbers of one mix; the first step of each side is left out of its time."""
        seconds = {side: timed_seconds(ran) for side, ran in found.items()}
        result: dict[str, Any] = {
            "tokens_per_s": {side: round(tokens_of(timed) / s, 1) for side, s in seconds.items()},
            "pairs_per_s": {side: round(len(timed) / s, 4) for side, s in seconds.items()},
            "peak_memory_mb": {side: round(r["peak_memory_mb"]) for side, r in found.items()},
            "loaded_memory_mb": {
                side: round(r["loaded_memory_mb"])
                for side, r in found.items()
                if r["loaded_memory_mb"]
            },
            "reference_s": {side: round(r["reference_seconds"], 2) for side, r in found.items()},
            "step_s": {side: [round(s, 3) for s in r["step_seconds"]] for side, r in found.items()},
            "gemm_peak_gflops": round(peak / 1e9, 1),
        }
        shares = {side: round(flops / s / peak, 3) for side, s in seconds.items()}
        if "trl" in found:
            result["gemm_share_trl"] = shares["trl"]
        if "ours" in found:
            result |= {"gemm_share": shares["ours"], "rows": found["ours"]["rows"]}
        if len(found) == 2:
            result["ratio"] = round(seconds["trl"] / seconds["ours"], 2)
            result |= agreement(found["ours"], found["trl"], self.tolerance)
        return result


def timed_seconds(ran: dict[str, Any]) -> float:
    """All steps but the first, which warms up."""
    return sum(ran["step_seconds"][1:])


def agreement(
    ours: dict[str, Any], theirs: dict[str, Any], tolerance: dict[str, float]
) -> dict[str, Any]:
    """Whether losses and gradient norms of all steps agree: then the same work was done."""
    steps = {name: list(zip(ours[name], theirs[name], strict=True)) for name in tolerance}
    worst = {name: max(abs(a - b) / abs(b) for a, b in both) for name, both in steps.items()}
    return {
        # Compared one by one, since a NaN is within no tolerance, yet no maximum.
        "steps_agree": all(
            abs(a - b) <= tolerance[name] * abs(b) for name, both in steps.items() for a, b in both
        ),
        "largest_difference": {name: float(f"{value:.2g}") for name, value in worst.items()},
        "losses": {"ours": ours["losses"], "trl": theirs["losses"]},
    }


def show(found: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    """Print what `summary` returned as a table."""
    print(f"{'':>18}" + "".join(f"{side:>12}" for side in found))
    for row in SHOWN:
        print(f"{row:>18}" + "".join(f"{result[row].get(side, 0):>12,}" for side in found))
    for name in (
        "ratio",
        "ratio_to_trl_defaults",
        "ratio_to_trl_keeping_memory",
        "gemm_share",
        "gemm_share_trl",
        "gemm_peak_gflops",
        "steps_agree",
        "largest_difference",
        "rows",
    ):
        if name in result:
            print(f"{name:>18}  {result[name]}")
    sys.stdout.flush()


def exit_unless_agreed(mixes: dict[str, dict[str, Any]]) -> None:
    """End with an error if the sides did different work in some mix."""
    if differ := [name for name, m in mixes.items() if m.get("steps_agree") is False]:
        sys.exit(
            f"{', '.join(differ)}: losses or gradient norms of the two sides differ, so they "
            "did not do the same work and their times say nothing"
        )
