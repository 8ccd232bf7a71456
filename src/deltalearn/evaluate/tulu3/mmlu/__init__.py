"""MMLU, by the likelihood of the letter and by reasoning: the two that differ by points.

`mmlu:mc::tulu` of OLMES is the suite's, `mmlu:cot::summarize` that of the paper's column.
"""

from __future__ import annotations

from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, Results, of_output
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.items import Splits, choices, dataset, gold, item
from deltalearn.evaluate.tulu3.mmlu import grader
from deltalearn.evaluate.tulu3.sources import Row, rows

LOCAL = "mmlu/test/*_test.csv (with a header; dev/*_dev.csv beside it)"
LETTERS = "ABCD"
EXAMPLES = "The following are multiple choice questions (with answers) about {subject}.\n\n"
SUMMARIZE = (
    "The following are multiple choice questions about {subject}. Summarize your reasoning "
    "concisely, then conclude with 'Therefore, the answer is: X' where X is one of A, B, C, or D."
    "\n\n"
)


def load(subject: str, data_dir: str | None = None, **_: Any) -> Splits:
    """A subject's questions, and its five development questions as examples."""
    test, dev = (
        rows(
            data_dir,
            "mmlu",
            LOCAL,
            f"mmlu/{split}/{subject}_{split}.csv",
            at=("cais/mmlu", subject, split),
        )
        for split in ("test", "dev")
    )
    name = subject.replace("_", " ")
    questions = [_item(row, id=f"{subject}/{i}", subject=name) for i, row in enumerate(test)]
    examples = [_item(row, id=f"{subject}/dev/{i}", subject=name) for i, row in enumerate(dev)]
    examples[0]["head"] = EXAMPLES.format(subject=name)
    return dataset(questions, examples)


def _item(row: Row, id: str, subject: str) -> Row:
    options = row.get("choices") or [row[f"choice{i}"] or "" for i in range(4)]
    letter = LETTERS[int(row["answer"])]
    return item(
        id=id,
        stratum=subject,
        question=row["question"],
        choices=options,
        target=letter,
        gold=letter,
    )


def prompt_mc(item: Row) -> str:
    """Question and choices; before the first example the subject."""
    return f"{item['head']}{_question(item)}\nAnswer:"


def prompt_cot(item: Row) -> str:
    """Instruction, question and choices."""
    return SUMMARIZE.format(subject=item["stratum"]) + _question(item)


def _question(item: Row) -> str:
    options = zip(LETTERS, choices(item), strict=True)
    return f"Question: {item['question']}\n" + "\n".join(f" {x}. {text}" for x, text in options)


def _likeliest(item: Row, results: Results) -> Grade:
    """The first letter of the highest log-likelihood."""
    values = [value for value, _ in results]
    letter = LETTERS[values.index(max(values))]
    return Grade(float(letter == gold(item)), letter)


LIKELIHOOD = Benchmark(
    "mmlu_mc", "MMLU mc", 14042, "accuracy", "macro", "choice", grade=_likeliest, questions="mmlu"
)
REASONING = Benchmark(
    "mmlu_cot",
    "MMLU CoT",
    14042,
    "exact match",
    "macro",
    grade=of_output(grader.grade),
    questions="mmlu",
)
score_mc, score_cot = LIKELIHOOD.score, REASONING.score
