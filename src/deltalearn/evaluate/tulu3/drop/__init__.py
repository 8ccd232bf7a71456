"""DROP: questions on passages, plain text, three examples of the train split. `drop::llama3`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from deltalearn.evaluate.tulu3.benchmark import Benchmark, of_output
from deltalearn.evaluate.tulu3.drop import grader
from deltalearn.evaluate.tulu3.items import Splits, dataset, item
from deltalearn.evaluate.tulu3.sources import NoData, Row, data_directory, files, hub, read_json

LOCAL = "drop*/drop*.json (and drop*/*train*.json, for the three examples)"
SEED = 1234  # OLMES seeds its examples anew for every question: they are the same for all
EXAMPLES = 3


def load(data_dir: str | None = None, **_: Any) -> Splits:
    """Questions on passages; gold: every accepted answer as a list of its parts."""
    directory = data_directory(data_dir)
    if directory is None:
        test, train = (list(hub("EleutherAI/drop", None, s)) for s in ("validation", "train"))
    else:
        test, train = _rows(directory, train=False), _rows(directory, train=True)
    return dataset(map(_item, test), map(_item, random.Random(SEED).sample(train, EXAMPLES)))


def _rows(directory: Path, train: bool) -> list[Row]:
    found = files(directory, "drop", LOCAL, "drop*/*.json")
    chosen = [path for path in found if ("train" in path.stem) == train]
    if not chosen:
        raise NoData(
            f"{directory}: no {'train' if train else 'development'} split of DROP; the three "
            "examples of its prompt are drawn from drop/drop_dataset_train.json"
        )
    return [
        {**pair, "passage": value["passage"], "section_id": section}
        for section, value in read_json(chosen[0]).items()
        for pair in value["qa_pairs"]
    ]


def _item(row: Row) -> Row:
    accepted = grader.gold(row)
    return item(
        id=row["query_id"],
        cluster=row["section_id"],
        head=row["passage"],
        question=row["question"],
        target=", ".join(accepted[0]),
        gold=accepted,
    )


BENCHMARK = Benchmark(
    "drop", "DROP", 9536, "F1", "micro", chat=False, grade=of_output(grader.grade)
)
score = BENCHMARK.score
