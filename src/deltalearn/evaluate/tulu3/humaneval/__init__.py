"""HumanEval and HumanEval+: pass@10 of 20 samples, run in the sandbox.

`codex_humaneval::tulu` and `codex_humanevalplus::tulu` of OLMES.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from deltalearn.evaluate.sandbox import Sandbox
from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results
from deltalearn.evaluate.tulu3.humaneval import grader
from deltalearn.evaluate.tulu3.items import Splits, dataset, gold, item
from deltalearn.evaluate.tulu3.sources import Row, rows

LOCAL = "humaneval/HumanEval.jsonl*"
LOCAL_PLUS = "humanevalplus/HumanEvalPlus-OriginFmt*.jsonl*"
PASS_AT = 10
SECONDS, SECONDS_PLUS = 3.0, 20.0  # of a program; the sandbox counts processor time


def load(data_dir: str | None = None, plus: bool = False, **_: Any) -> Splits:
    """Stubs to complete; gold: the tests and the name that they call."""
    name, local = ("humanevalplus", LOCAL_PLUS) if plus else ("humaneval", LOCAL)
    place = "evalplus/humanevalplus" if plus else "openai/openai_humaneval"
    return dataset(
        item(
            id=row["task_id"],
            question=row["prompt"],
            target=row["canonical_solution"],
            gold={"test": row["test"], "entry_point": row["entry_point"]},
        )
        for row in rows(data_dir, name, local, at=(place, None, "test"))
    )


# lm_eval alone asks for consent by itself (--confirm_run_unsafe_code); our command gives its own.
consent: dict[str, Any] = {"allow": True}
_sandbox = cache(Sandbox)  # made for the first program


def score(item: Row, results: Results) -> dict[str, float]:
    """pass@10 of the samples, and the share that passes. HumanEval's tests."""
    return _pass_at_10(item, results[0], SECONDS)


def score_plus(item: Row, results: Results) -> dict[str, float]:
    """pass@10 of the samples, and the share that passes. HumanEval+'s tests."""
    return _pass_at_10(item, results[0], SECONDS_PLUS)


def _pass_at_10(item: Row, outputs: Sequence[str], seconds: float) -> dict[str, float]:
    tests = gold(item)
    programs = [
        grader.program(item["question"], output, tests["test"], tests["entry_point"])
        for output in outputs
    ]
    outcomes = _sandbox(**consent).run_programs(programs, timeout=seconds)
    passed = sum(outcome.passed for outcome in outcomes)
    chance = grader.pass_at_k(len(outputs), passed, min(PASS_AT, len(outputs)))
    return {"score": chance, "passed": passed / len(outputs)}


BENCHMARK = Benchmark("humaneval", "HumanEval", 164, "pass@10", "micro", "code")
PLUS = Benchmark(
    "humanevalplus",
    "HumanEval+",
    164,
    "pass@10",
    "micro",
    "code",
    questions="humaneval",
    notes=lambda: ["the released test of HumanEval/32 passes no program: 163 of 164 is the most"],
)
