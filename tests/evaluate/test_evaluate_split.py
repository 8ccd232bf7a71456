"""Protects choosing: no question that models are chosen on may be among those reported.

Two benchmarks may ask the same questions, as HumanEval and HumanEval+ do, or MMLU by reasoning and
by likelihood. Names of items are those of the real data.
"""

from __future__ import annotations

import json

import pytest
from helpers.data import DATA

pytest.importorskip("lm_eval")

from deltalearn.evaluate.harness.run import Selection, Tasks, load_tasks
from deltalearn.evaluate.tulu3.suite import BY_NAME

TWINS = (("humaneval", "humanevalplus"), ("mmlu_cot", "mmlu_mc"))


def questions(tasks: Tasks, split: str, limit: int | None = None) -> dict[str, str]:
    """{name of an item: what it asks} of a split."""
    found = {}
    for name, places in tasks.chosen(Selection(split, limit)).items():
        docs = tasks.tasks[name].eval_docs
        for at in places:
            found[docs[at]["id"]] = asked(tasks.benchmark.kind, docs[at])
    return found


def asked(kind: str, doc: dict) -> str:
    """Of programs the function: HumanEval+ has mended one prompt."""
    if kind == "code":
        return json.loads(doc["gold"])["entry_point"]
    return doc["question"] + doc["choices"]


@pytest.mark.data
@pytest.mark.parametrize("names", TWINS)
@pytest.mark.slow
def test_no_question_is_on_both_sides_of_twins(names):
    twins = [load_tasks(BY_NAME[name], DATA) for name in names]
    sides = [{split: questions(t, split) for split in ("test", "dev", "held-out")} for t in twins]
    assert sides[0]["test"] == sides[1]["test"], "the same name is the same question"
    for one, other in (sides, sides[::-1]):
        assert not one["dev"].keys() & other["held-out"].keys()
        assert one["dev"].keys() | other["held-out"].keys() == one["test"].keys()
        share = len(one["dev"]) / len(one["test"])
        assert 0.15 < share < 0.25
    assert questions(twins[0], "dev", 10).keys() == questions(twins[1], "dev", 10).keys()


def test_other_benchmarks_are_drawn_each_by_itself():
    """The same names, of other questions: a fixed part of each would be the same numbers."""
    names = [str(i) for i in range(1_000)]
    drawn = [Selection("dev").of(name, names) for name in ("gsm8k", "popqa", "mmlu_mc")]
    assert all(150 < len(part) < 250 for part in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
