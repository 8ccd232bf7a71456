"""Protects the result directory: what is written is what is read, scores are macro over tasks, and
what belongs to another version is not read as this one's."""

from __future__ import annotations

import json

import pytest
from helpers.results import item_rows

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.results import (
    FORMAT,
    read_results,
    summary,
    write_items,
    write_results,
)
from deltalearn.evaluate.reference.benchmark import QuestionBenchmark
from deltalearn.evaluate.reference.scorers import SCORERS

EXACT = SCORERS["exact"]


def row(id, stratum, score, **columns):
    empty = dict.fromkeys(("cluster", "prompt", "output", "reasoning", "extracted", "gold"), "")
    return {"id": id, "stratum": stratum, "score": score, **empty, **columns}


def test_items_come_back_as_they_were(tmp_path):
    rows = [row("1", "a", 1.0, output="ü"), row("2", "b", 0.2)]
    write_items(tmp_path, "set.loglik", rows)
    assert item_rows(tmp_path, "set.loglik") == rows
    assert [p.name for p in (tmp_path / "items").iterdir()] == ["set.loglik.parquet"]


def test_score_of_questions_is_macro_over_tasks():
    rows = [row("1", "a", 1.0), row("2", "b", 0.2), row("3", "a", 0.0)]
    entry = summary(QuestionBenchmark("set", "expected_accuracy", EXACT), rows)
    assert entry["score"] == pytest.approx(0.35)  # 0.4 over all items
    assert entry | {"score": 0, "stderr": 0} == {
        "title": "set expected accuracy",
        "kind": "reference",
        "metric": "probability of the reference answer",
        "aggregation": "macro",
        "bounded": True,
        "constant": False,
        "n": 3,
        "score": 0,
        "stderr": 0,
    }


def test_log_likelihoods_are_said_to_be_unbounded():
    assert not summary(QuestionBenchmark("set", "loglik", EXACT), [row("1", "", -3.5)])["bounded"]


def test_results_of_another_format_are_refused(tmp_path):
    write_results(tmp_path, {"benchmarks": {}})
    assert read_results(tmp_path) == {"format": FORMAT, "benchmarks": {}}
    (tmp_path / "results.json").write_text(json.dumps({"format": FORMAT - 1}))
    with pytest.raises(UserError, match=r"another version.*--update"):
        read_results(tmp_path)
