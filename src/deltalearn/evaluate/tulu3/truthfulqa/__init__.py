"""TruthfulQA, MC2: six fixed examples in the question's own turn. `truthfulqa::tulu` of OLMES."""

from __future__ import annotations

from functools import cache
from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results
from deltalearn.evaluate.tulu3.examples import lm_eval_task, published
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.items import Splits, choices, dataset, gold, item
from deltalearn.evaluate.tulu3.sources import Row, numbered, rows
from deltalearn.evaluate.tulu3.truthfulqa import grader

LOCAL = "truthfulqa/mc_task.json"


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Questions with the choices of MC1 and MC2 merged; gold: 1 for true, 0 for false, of MC2."""
    place = "truthfulqa/truthful_qa", "multiple_choice", "validation"
    found = rows(data_dir, "truthfulqa", LOCAL, at=place)
    head = "".join(f"Q: {s['question']}\nA: {s['answer']}\n\n" for s in worked_examples())
    return dataset(_item(name, row, head) for name, row in numbered(found, ""))


def _item(name: str, row: Row, head: str) -> Row:
    targets = [row["mc1_targets"], row["mc2_targets"]]
    if "labels" in targets[0]:  # the hub's two lists
        targets = [dict(zip(t["choices"], t["labels"], strict=True)) for t in targets]
    merged = list(dict.fromkeys([*targets[0], *targets[1]]))
    return item(
        id=name,
        head=head,
        question=row["question"].strip(),
        choices=merged,
        gold=[targets[1].get(choice) for choice in merged],  # None: of MC1 alone
        target=merged[0],
    )


@cache
def worked_examples() -> list[Row]:
    """Six: question, answer. (Lin et al. 2022.)"""
    text = lm_eval_task("truthfulqa/truthfulqa_mc1.yaml")["doc_to_text"]
    literal = text.partition("'")[2].partition("'%}")[0]  # of the template
    pairs = (block.split("\nA: ") for block in literal.removeprefix("Q: ").split("\n\nQ: "))
    examples = [{"question": question, "answer": answer} for question, answer in pairs]
    return published("truthfulqa", examples)


def _grade(item: Row, results: Results) -> Grade:
    """MC2; extracted is the likeliest choice."""
    values = [value for value, _ in results]
    known = [(v, label) for v, label in zip(values, gold(item), strict=True) if label is not None]
    share = grader.mc2([v for v, _ in known], [label for _, label in known])
    return Grade(share, choices(item)[values.index(max(values))])


BENCHMARK = Benchmark(
    "truthfulqa", "TruthfulQA", 817, "MC2", "micro", "choice", grade=_grade, worked=6
)
score = BENCHMARK.score
