"""What the benchmarks are: sizes, metrics, averages. How they are asked is in the YAML files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["choice", "text", "code", "judged"]
Aggregation = Literal["mean", "macro", "micro"]


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's table.

    full: items of the published split. aggregation: macro, the mean of the strata's means; micro,
    the mean over all items of all strata; mean, where there are no strata. chat: whether the chat
    template is applied. kind: choice needs log-likelihoods, code the sandbox, judged a judge.
    """

    name: str
    title: str
    full: int
    metric: str
    aggregation: Aggregation
    kind: Kind = "text"
    chat: bool = True

    @property
    def task(self) -> str:
        """Its name in lm_eval."""
        return f"tulu3_{self.name}"


ALL = (
    Benchmark("mmlu_mc", "MMLU mc", 14042, "accuracy", "macro", "choice"),
    Benchmark("mmlu_cot", "MMLU CoT", 14042, "exact match", "macro"),
    Benchmark("popqa", "PopQA", 14267, "alias in output", "mean"),
    Benchmark("math", "MATH", 5000, "flex exact match", "macro"),
    Benchmark("gsm8k", "GSM8K", 1319, "exact match", "mean"),
    Benchmark("alpaca_eval", "AlpacaEval 2", 805, "win rate", "mean", "judged"),
    Benchmark("ifeval", "IFEval", 541, "prompt-level loose accuracy", "mean"),
    Benchmark("bbh", "BBH", 6511, "exact match", "micro"),
    Benchmark("drop", "DROP", 9536, "F1", "mean", chat=False),
    Benchmark("truthfulqa", "TruthfulQA", 817, "MC2", "mean", "choice"),
    Benchmark("humaneval", "HumanEval", 164, "pass@10", "mean", "code"),
    Benchmark("humanevalplus", "HumanEval+", 164, "pass@10", "mean", "code"),
)
BY_NAME = {benchmark.name: benchmark for benchmark in ALL}
MMLU = ("mmlu_cot", "mmlu_mc")  # one of them counts in the average: the first that was run
ELEVEN = tuple(b.name for b in ALL if b.name not in MMLU)  # and one of MMLU


def averaged(names: set[str], mmlu: str | None = None) -> tuple[str, ...] | None:
    """The eleven benchmarks of the average, None if one of them is missing.

    mmlu: the variant that counts; default: the first of MMLU that is there.
    """
    variant = mmlu or next((name for name in MMLU if name in names), None)
    if variant not in names or not names.issuperset(ELEVEN):
        return None
    return (variant, *ELEVEN)
