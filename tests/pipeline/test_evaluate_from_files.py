"""Protects AlpacaEval from files alone: the published numbers of published verdicts, no model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from helpers.data import DATA

from deltalearn.compare.command import compare
from deltalearn.errors import UserError
from deltalearn.evaluate.harness.results import read_results
from deltalearn.pipeline.evaluate_files import evaluate_files
from deltalearn.recipe import CompareSpec

MODEL = "FuseChat-Llama-3.2-1B-Instruct"


def verdicts(folder: Path, model: str, better: float, count: int = 12) -> Path:
    """A file of verdicts of a made-up model, which wins more often the larger `better` is."""
    rows = [
        {
            "instruction": f"question {i}",
            "output_1": "the reference answers",
            "generator_1": "reference",
            "output_2": f"{model} answers " + "x" * (7 * i % 5),
            "generator_2": model,
            "dataset": "made up",
            "annotator": "judge",
            "preference": 1 + min(0.98, better + 0.05 * (i % 4)),
        }
        for i in range(count)
    ]
    file = folder / f"{model}.json"
    file.write_text(json.dumps(rows))
    return file


def answers(folder: Path, file: Path, **changes: str) -> Path:
    rows = [
        {"instruction": r["instruction"], "output": changes.get(r["instruction"], r["output_2"]),
         "generator": r["generator_2"]}
        for r in json.loads(file.read_text())
    ]  # fmt: skip
    place = folder / "model_outputs.json"
    place.write_text(json.dumps(rows))
    return place


def test_the_numbers_are_those_of_the_file_and_can_be_compared(tmp_path):
    said: list[str] = []
    for model, better in (("good", 0.6), ("bad", 0.1)):
        file = verdicts(tmp_path, model, better)
        results = evaluate_files(file, answers(tmp_path, file), tmp_path / model, say=said.append)
        raw = results["benchmarks"]["alpaca_eval"]["alpaca_eval"]["win_rate"]
        rows = json.loads(file.read_text())
        assert raw["win_rate"] == pytest.approx(sum(r["preference"] - 1 for r in rows) / len(rows))
        assert raw["mean_length"] == sum(len(r["output_2"]) for r in rows) / len(rows)
    assert "raw win rate 67.5, mean length " in said[0]
    assert "the minimal length-controlled rate is not the published one" in said[0]
    assert read_results(tmp_path / "good")["model"]["name"] == "good"
    found = compare(CompareSpec(a=str(tmp_path / "good"), b=str(tmp_path / "bad"), draws=1000))
    assert found.rows[0].difference > 0.3


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    file = verdicts(tmp_path, "good", 0.6)
    others = answers(tmp_path, file, **{"question 3": "another answer"})
    with pytest.raises(UserError, match="judged another answer of good"):
        evaluate_files(file, others, tmp_path / "out")
    evaluate_files(file, None, tmp_path / "out", say=lambda line: None)
    with pytest.raises(UserError, match="has results of something else"):
        evaluate_files(verdicts(tmp_path, "bad", 0.1), None, tmp_path / "out")


@pytest.mark.data(f"alpaca_eval/{MODEL}/annotations.json.gz")
def test_the_raw_win_rate_is_that_of_the_leaderboard(tmp_path):
    folder = DATA / "alpaca_eval" / MODEL
    results = evaluate_files(
        folder / "annotations.json.gz", folder / "model_outputs.json", tmp_path, say=lambda x: None
    )
    found = results["benchmarks"]["alpaca_eval"]["alpaca_eval"]["win_rate"]
    with (DATA / "alpaca_eval" / "leaderboard.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row[""] == MODEL)
    assert 100 * found["win_rate"] == pytest.approx(float(row["win_rate"]), abs=1e-9)
    assert round(found["mean_length"]) == int(row["avg_length"])
