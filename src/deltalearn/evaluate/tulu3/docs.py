"""The items of every benchmark in one form, for lm_eval's `custom_dataset`.

A doc has: id, stratum (subject or sub-task), cluster (what items share, as DROP's passage), head
(what stands before the question, or before the first example), question, choices, target (the
assistant's turn, in examples) and gold (what a grader needs). Values that are no text are JSON,
since Arrow would give every dictionary the keys of all. A dataset has the splits `test` and
`examples`; the latter, where there are any, are those of the prompt in their order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from deltalearn.evaluate.graders import drop as drop_grader
from deltalearn.evaluate.tulu3 import fewshot as shots
from deltalearn.evaluate.tulu3.sources import (
    NoData,
    Row,
    data_directory,
    files,
    hub,
    hub_file,
    numbered,
    read,
    read_json,
)

LETTERS = "ABCD"
DROP_SEED = 1234  # OLMES seeds its examples anew for every question: they are the same for all
DROP_SHOTS = 3
EMPTY = {"id": "", "stratum": "", "cluster": "", "head": "", "question": "", "choices": "[]"}
EMPTY |= {"target": "", "gold": "null"}


def doc(**values: Any) -> Row:
    """A doc; choices and gold are given as they are and stored as JSON."""
    for name in ("choices", "gold"):
        if name in values:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return {**EMPTY, **values}


def gold(item: Row) -> Any:
    """What a grader needs."""
    return json.loads(item["gold"])


def choices(item: Row) -> list[str]:
    """The answers to choose from; for `doc_to_choice`."""
    return json.loads(item["choices"])


def _dataset(test: Iterable[Row], examples: Iterable[Row] = ()) -> DatasetDict:
    splits = {"test": Dataset.from_list(list(test))}
    if examples := list(examples):
        splits["examples"] = Dataset.from_list(examples)
    return DatasetDict(splits)


# -- a loader for each benchmark; lm_eval calls it with its metadata and the task's arguments ------


def mmlu(subject: str, data_dir: str | None = None, **_: Any) -> DatasetDict:
    """A subject's questions, and its five development questions as examples."""
    directory = data_directory(data_dir)
    if directory is None:
        test, dev = (hub("cais/mmlu", subject, split) for split in ("test", "dev"))
    else:
        test = read(files(directory, "mmlu", f"mmlu/test/{subject}_test.csv")[0])
        dev = read(files(directory, "mmlu", f"mmlu/dev/{subject}_dev.csv")[0])
    name = subject.replace("_", " ")
    rows = [_mmlu(row, id=f"{subject}/{i}", subject=name) for i, row in enumerate(test)]
    examples = [_mmlu(row, id=f"{subject}/dev/{i}", subject=name) for i, row in enumerate(dev)]
    examples[0]["head"] = (
        f"The following are multiple choice questions (with answers) about {name}.\n\n"
    )
    return _dataset(rows, examples)


def _mmlu(row: Row, id: str, subject: str) -> Row:
    options = row.get("choices") or [row[f"choice{i}"] for i in range(4)]
    letter = LETTERS[int(row["answer"])]
    return doc(
        id=id,
        stratum=subject,
        question=row["question"],
        choices=options,
        target=letter,
        gold=letter,
    )


def popqa(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Entity questions; gold: the aliases of the object."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("akariasai/PopQA", None, "test")
    else:
        rows = read(files(directory, "popqa", "popqa/*.jsonl", "popqa_subset/*.jsonl")[0])
    test = (
        doc(id=str(row["id"]), question=row["question"], target=aliases[0], gold=aliases)
        for row in rows
        for aliases in [row.get("golden_answers") or json.loads(row["possible_answers"])]
    )
    examples = (
        doc(id=f"example/{i}", question=row["question"], target=row["obj"])
        for i, row in enumerate(shots.popqa(directory))
    )
    return _dataset(test, examples)


def truthfulqa(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Questions with the choices of MC1 and MC2 merged; gold: 1 for true, 0 for false, of MC2."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("truthfulqa/truthful_qa", "multiple_choice", "validation")
    else:
        rows = read(files(directory, "truthfulqa", "truthfulqa/mc_task.json")[0])
    head = "".join(f"Q: {s['question']}\nA: {s['answer']}\n\n" for s in shots.truthfulqa())
    return _dataset(_truthfulqa(name, row, head) for name, row in numbered(rows, ""))


def _truthfulqa(name: str, row: Row, head: str) -> Row:
    targets = [row["mc1_targets"], row["mc2_targets"]]
    if "labels" in targets[0]:  # the hub's two lists
        targets = [dict(zip(t["choices"], t["labels"], strict=True)) for t in targets]
    merged = list(dict.fromkeys([*targets[0], *targets[1]]))
    return doc(
        id=name,
        head=head,
        question=row["question"].strip(),
        choices=merged,
        gold=[targets[1].get(choice) for choice in merged],  # None: of MC1 alone
        target=merged[0],
    )


def bbh(task: str, data_dir: str | None = None, **_: Any) -> DatasetDict:
    """A sub-task's questions; three chains of thought as examples, behind its description."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("SaylorTwift/bbh", task, "test")
    else:
        rows = read_json(files(directory, "bbh", f"bbh/bbh/{task}.json")[0])["examples"]
    description, worked = shots.bbh(task)
    test = (
        doc(id=name, stratum=task, question=row["input"], target=row["target"], gold=row["target"])
        for name, row in numbered(rows, f"{task}/")
    )
    examples = [
        doc(id=f"{task}/example/{i}", question=row["input"], target=row["target"])
        for i, row in enumerate(worked)
    ]
    examples[0]["head"] = f"{description}\n\n"
    return _dataset(test, examples)


def gsm8k(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Word problems; gold: the answer text with its `#### number`."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("openai/gsm8k", "main", "test")
    else:
        rows = read(files(directory, "gsm8k", "gsm8k/test.jsonl")[0])
    test = (
        doc(id=name, question=row["question"], target=row["answer"], gold=row["answer"])
        for name, row in numbered(rows, "")
    )
    examples = (
        doc(id=f"example/{i}", question=row["question"], target=row["answer"])
        for i, row in enumerate(shots.gsm8k())
    )
    return _dataset(test, examples)


MATH = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip


def math(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Competition problems of seven subjects; gold: the whole solution."""
    directory = data_directory(data_dir)
    if directory is None:
        rows = [
            {**row, "unique_id": f"{subject}/{i}"}
            for subject in MATH
            for i, row in enumerate(hub("EleutherAI/hendrycks_math", subject, "test"))
        ]
    else:
        rows = read(files(directory, "math", "math/test.jsonl", "math500/test.jsonl")[0])
    test = (
        doc(
            id=row["unique_id"],
            stratum=row.get("subject") or row["type"],
            question=row["problem"],
            target=row["solution"],
            gold=row["solution"],
        )
        for row in rows
    )
    examples = (
        doc(id=f"example/{i}", question=row["problem"], target=row["solution"])
        for i, row in enumerate(shots.minerva())
    )
    return _dataset(test, examples)


def drop(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Questions on passages; gold: every accepted answer as a list of its parts."""
    directory = data_directory(data_dir)
    if directory is None:
        test, train = (hub("EleutherAI/drop", None, split) for split in ("validation", "train"))
        test_rows, train_rows = list(test), list(train)
    else:
        test_rows = _drop_file(_drop_files(directory, train=False))
        train_rows = _drop_file(_drop_files(directory, train=True))
    drawn = random.Random(DROP_SEED).sample(train_rows, DROP_SHOTS)
    return _dataset(map(_drop, test_rows), map(_drop, drawn))


def _drop_files(directory: Path, train: bool) -> Path:
    found = files(directory, "drop", "drop*/*.json")
    chosen = [path for path in found if ("train" in path.stem) == train]
    if not chosen:
        raise NoData(
            f"{directory}: no {'train' if train else 'development'} split of DROP; the three "
            "examples of its prompt are drawn from drop/drop_dataset_train.json"
        )
    return chosen[0]


def _drop_file(path: Path) -> list[Row]:
    return [
        {**pair, "passage": value["passage"], "section_id": section}
        for section, value in read_json(path).items()
        for pair in value["qa_pairs"]
    ]


def _drop(row: Row) -> Row:
    accepted = drop_grader.gold(row)
    return doc(
        id=row["query_id"],
        cluster=row["section_id"],
        head=row["passage"],
        question=row["question"],
        target=", ".join(accepted[0]),
        gold=accepted,
    )


def ifeval(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Prompts with checkable instructions; gold: their names and arguments."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("google/IFEval", None, "train")
    else:
        rows = read(files(directory, "ifeval", "ifeval/*.jsonl")[0])
    return _dataset(
        doc(
            id=str(row["key"]),
            question=row["prompt"],
            gold={"instructions": row["instruction_id_list"], "arguments": row["kwargs"]},
        )
        for row in rows
    )


def humaneval(data_dir: str | None = None, plus: bool = False, **_: Any) -> DatasetDict:
    """Stubs to complete; gold: the tests and the name that they call."""
    directory = data_directory(data_dir)
    name = "humanevalplus" if plus else "humaneval"
    if directory is None:
        rows: Iterable[Row] = hub(
            "evalplus/humanevalplus" if plus else "openai/openai_humaneval", None, "test"
        )
    else:
        pattern = f"{name}/HumanEvalPlus-OriginFmt*" if plus else f"{name}/HumanEval.jsonl*"
        rows = read(files(directory, name, pattern)[0])
    return _dataset(
        doc(
            id=row["task_id"],
            question=row["prompt"],
            target=row["canonical_solution"],
            gold={"test": row["test"], "entry_point": row["entry_point"]},
        )
        for row in rows
    )


def alpaca_eval(data_dir: str | None = None, **_: Any) -> DatasetDict:
    """Instructions; gold: the reference's answer. Judged apart, so lm_eval alone gives no score."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub_file("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
    else:
        rows = read(files(directory, "alpaca_eval", "alpaca_eval/reference_*.json")[0])
    return _dataset(
        doc(
            id=name,
            cluster=row["dataset"],
            question=row["instruction"],
            gold={"output": row["output"], "generator": row["generator"]},
        )
        for name, row in numbered(rows, "")
    )
