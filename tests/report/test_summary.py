"""Protects the numbers of a run: summary, report and `compare` say the same of the same scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.compared_runs import run as compare_text
from helpers.compared_runs import spec, suite
from helpers.fake_run import make_run

from deltalearn.compare.command import compare
from deltalearn.errors import UserError
from deltalearn.report.page import render_page
from deltalearn.report.summary import summarize
from deltalearn.report.terminal import print_summary
from deltalearn.stats import seeds
from deltalearn.stats.sampling import Sampling
from deltalearn.util.files import write_json


def with_suite(run, arms, seeds=(0, 1)):
    """The whole suite in place of the scores that a run has. arms: name -> gain."""
    for model, gain in (("student", 0.0), ("large", -0.3), ("small", -0.6)):
        suite(run / "scores" / "models" / model, gain, 1, size=60)
    for arm, gain in arms.items():
        for seed in seeds:
            place = run / "scores" / "arms" / arm / f"seed-{seed}"
            names = {"name": f"demo/{arm} seed {seed}", "run": "demo", "arm": arm, "seed": seed}
            suite(place, gain, 10 + seed, size=60, model={**names, "identity": str(place)})
    return run


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("suite") / "run", effects={"up": 0.2, "sft": -0.1})
    return with_suite(run, {"up": 0.5, "sft": -0.4})


def set_recipe(run, **changes):
    manifest = json.loads((run / "run.json").read_text())
    manifest["recipe"] |= changes
    write_json(run / "run.json", manifest)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one seed", "two seeds"])
def test_summary_says_what_compare_says(tmp_path, seeds):
    """Also: RUN:ARM finds an arm with all its seeds, and base."""
    run = make_run(tmp_path / "run", effects={"up": 0.2}, seeds=seeds)
    with_suite(run, {"up": 0.5}, seeds)
    set_recipe(run, evaluate={"bootstrap": 1_000})
    found = summarize(run)["arms"]["up"]
    told = compare(spec(tmp_path / "run:up", tmp_path / "run:base"))
    assert told.a.name == "demo/up" and len(told.a.runs) == len(seeds)
    keys = [*(row.name for row in told.rows), "average", "average_without_alpaca_eval"]
    for key, one in zip(keys, [*told.rows, *told.averages], strict=True):
        difference = found["diff_vs_base"][key]
        assert difference["mean"] == one.difference
        assert (difference["lo"], difference["hi"]) == (one.test.lo, one.test.hi)
        assert (difference["p"], difference["by"]) == (one.test.p, one.test.interval_by)
        assert np.mean(found["per_seed"][key]) == pytest.approx(one.difference)
        assert found[key]["mean"] == pytest.approx(one.a)


def test_intervals_cover_items_and_seeds_and_say_so(tmp_path):
    """By hand: two tasks of 40 items, base 1 run, the arm 2 runs that differ by 0.001."""
    run = make_run(tmp_path, effects={"a": None})
    summary = summarize(run)
    entry = summary["arms"]["a"]["diff_vs_base"]["questions.expected_accuracy"]
    noise = np.repeat([0.05, -0.05], 40)
    a = np.stack([noise, noise + 0.001])
    tasks = ["add", "sort"] * 40
    one = seeds.difference(a, np.zeros((1, 80)), Sampling(80, strata=tasks))
    assert (entry["lo"], entry["hi"]) == pytest.approx(one.interval())
    assert entry["by"] == "t" and one.seeds_a > 0
    assert "training seeds as random effects: Student's t" in summary["intervals"]
    assert summary["intervals"] in render_page(run, summary).replace("&#39;", "'")


def test_one_seed_covers_items_only(tmp_path):
    run = make_run(tmp_path, effects={"a": None}, seeds=(3,))
    text = summarize(run)["intervals"]
    assert "the training seed is NOT covered" in text
    assert "percentile bootstrap of 300 draws" in text and "Tango" not in text


def test_a_constant_benchmark_is_said_to_tell_nothing(tmp_path, capsys):
    run = make_run(tmp_path, effects={"a": 0.1})
    name = "questions.greedy_accuracy"
    for file in (run / "scores").rglob("results.json"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = file.parent / "items" / f"{name}.parquet"
        table = pq.read_table(path)
        zeros = pa.array(np.zeros(table.num_rows))
        at = table.column_names.index("score")
        pq.write_table(table.set_column(at, "score", zeros), path)
        results = json.loads(file.read_text())
        results["benchmarks"][name]["score"] = 0.0
        write_json(file, results)
    summary = summarize(run)
    assert summary["benchmarks"][name]["constant"] == 0
    assert summary["benchmarks"]["questions.expected_accuracy"]["constant"] is None
    note = "constant: tells nothing, every model has 0 on every item"
    assert note in summary["notes"][0]
    page = render_page(run, summary)
    assert note in page and page.count("greedy accuracy") == 1  # that note
    write_json(run / "summary.json", summary)
    print_summary(run)
    assert note in capsys.readouterr().out


def test_a_run_without_evaluation_has_a_report_without_scores(tmp_path, capsys):
    run = make_run(tmp_path, effects={"a": 0.1})
    set_recipe(run, evaluate=None)
    summary = summarize(run)
    assert summary["benchmarks"] == {} and summary["arms"] == {"base": {}, "a": {}}
    page = render_page(run, summary)
    assert "Tuned, not scored" in page and "Sample pairs" in page
    assert "Arms compared" not in page and "95%" not in page
    write_json(run / "summary.json", summary)
    print_summary(run)
    assert "report.html" in capsys.readouterr().out


def test_the_suite_is_told_by_its_average_and_then_by_benchmark(suite_run, capsys):
    summary = summarize(suite_run)
    assert next(iter(summary["benchmarks"])) == "average"
    assert summary["benchmarks"]["average"]["title"] == "average of the 11"
    page = render_page(suite_run, summary)
    assert "1 of 2 tuned students beats the untouched one in the average of the 11" in page
    assert 'id="benchmarks"' in page and page.count('<section id="tasks">') == 1
    assert page.count('role="img"') < 12  # averages are drawn, not each of twelve benchmarks
    write_json(suite_run / "summary.json", summary)
    print_summary(suite_run)
    text = capsys.readouterr().out
    assert "by benchmark" in text and "TruthfulQA" in text and "▲" in text


def test_log_likelihoods_are_compared_in_their_own_unit(tmp_path, capsys):
    run = make_run(tmp_path / "run", effects={"a": 0.1}, metrics=("loglik",))
    text = compare_text(capsys, tmp_path / "run:a", tmp_path / "run:base", plot=tmp_path / "p")
    assert "better than demo/models/student on questions loglik by 0.1005 nats per byte" in text
    assert "points" not in text.partition("points, A minus B")[2]
    assert (tmp_path / "p.svg").stat().st_size > 10_000
    assert summarize(run)["benchmarks"]["questions.loglik"]["bounded"] is False


@pytest.mark.parametrize(
    ("address", "said"),
    [("run", "say which, as"), ("run:other", "no scores of it"), ("none:up", "no results.json")],
)
def test_addresses_that_name_no_arm(suite_run, address, said):
    with pytest.raises(UserError, match=said) as error:
        compare(spec(suite_run.parent / address, suite_run.parent / "run:base"))
    if address != "none:up":
        assert "sft, up, large, small and base" in str(error.value)
