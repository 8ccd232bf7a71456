"""The items of every benchmark in one form, for lm_eval's `custom_dataset`.

An item has: id, stratum (subject or sub-task), cluster (what items share, as DROP's passage), head
(what stands before the question, or before the first example), question, choices, target (the
assistant's turn, in examples) and gold (what a grader needs). Values that are no text are JSON,
since Arrow would give every dictionary the keys of all. A dataset has the splits `test` and
`examples`; the latter, where there are any, are those of the prompt in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from deltalearn.evaluate.tulu3.sources import Row

Splits = Any  # a datasets.DatasetDict, which is imported late
EMPTY = {"id": "", "stratum": "", "cluster": "", "head": "", "question": "", "choices": "[]"}
EMPTY |= {"target": "", "gold": "null"}


def item(**values: Any) -> Row:
    """An item; choices and gold are given as they are and stored as JSON."""
    for name in ("choices", "gold"):
        if name in values:
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return {**EMPTY, **values}


def examples(worked: Iterable[tuple[str, str]], of: str = "") -> list[Row]:
    """Make the items of a prompt's examples.

    Args:
        worked: Question and answer of each.
        of: What their names begin with.
    """
    named = enumerate(worked)
    return [item(id=f"{of}example/{i}", question=q, target=answer) for i, (q, answer) in named]


def gold(item: Row) -> Any:
    """Read what a grader needs from an item."""
    return json.loads(item["gold"])


def choices(item: Row) -> list[str]:
    """The answers to choose from; for `doc_to_choice`."""
    return json.loads(item["choices"])


def target(item: Row) -> str:
    """The assistant's turn of an example, as it is: a template would read `[...]` as a list."""
    return item["target"]


def dataset(test: Iterable[Row], shown: Iterable[Row] = ()) -> Splits:
    """Make both splits, as lm_eval takes them.

    Args:
        test: Items to be asked.
        shown: Examples of the prompt, in its order; there is no such split without any.
    """
    from datasets import Dataset, DatasetDict

    splits = {"test": Dataset.from_list(list(test))}
    if shown := list(shown):
        splits["examples"] = Dataset.from_list(shown)
    return DatasetDict(splits)
