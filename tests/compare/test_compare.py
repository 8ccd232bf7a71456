"""Protects what `deltalearn compare` computes: every number is that of the items in the files.

Differences, intervals, tests and averages of whole suites, AlpacaEval's control for length, and
training seeds as a random effect. Result directories are made here.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from helpers.compared_runs import (
    ALPACA,
    JUDGE,
    ONES,
    ZEROS,
    alpaca,
    by_id,
    compared,
    gsm8k,
    items,
    run,
    write,
)

from deltalearn.compare import verdict as words
from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.suite import ELEVEN
from deltalearn.stats import mcnemar
from deltalearn.stats.sampling import Sampling

# -- numbers -------------------------------------------------------------------------------------


def test_one_benchmark_by_hand(two_runs):
    """b = 7, c = 1: 60 points; p = 2 (1 + 8) / 256 = 0.0703; not shown, whatever it looks like."""
    (row,) = compared(*two_runs).rows
    assert (row.a, row.b, row.difference) == pytest.approx((0.8, 0.2, 0.6))
    assert row.discordant == (7, 1)
    assert row.test.p == pytest.approx(18 / 256)
    assert row.holm == row.test.p
    assert (row.test.lo, row.test.hi) == mcnemar.interval(7, 1, 10)
    assert row.test.lo < 0 < row.test.hi
    d = np.array(ONES) - ZEROS
    assert row.se == pytest.approx(d.std(ddof=1) / math.sqrt(10))
    assert row.unpaired_se == pytest.approx(math.sqrt(0.16 / 9 * 2))
    assert row.correlation == pytest.approx(np.corrcoef(ONES, ZEROS)[0, 1])
    assert row.detectable == pytest.approx(row.se * (2.262157 + 0.883404), rel=1e-5)  # t(9)


def test_order_of_items_in_the_files_does_not_matter(tmp_path, two_runs):
    rows = items(ZEROS)
    other = write(
        tmp_path / "shuffled", {"gsm8k": [rows[i] for i in (3, 1, 9, 0, 2, 8, 7, 5, 6, 4)]}
    )
    assert compared(two_runs[0], other).rows[0].discordant == (7, 1)
    assert compared(other, two_runs[0]).rows[0].discordant == (1, 7)


@pytest.mark.slow
def test_swapping_the_arms_turns_the_sign(suites):
    one = compared(suites["better"], suites["base"])
    other = compared(suites["base"], suites["better"])
    for row, back in zip([*one.rows, *one.averages], [*other.rows, *other.averages], strict=True):
        assert row.difference == pytest.approx(-back.difference)
        assert row.se == pytest.approx(back.se)
        assert row.test.p == pytest.approx(back.test.p)
        assert (row.test.lo, row.test.hi) == pytest.approx((-back.test.hi, -back.test.lo))


def test_methods_fit_the_scores(suites):
    """0/1 and plain: McNemar; macro and shares: bootstrap; clusters: t with G - 1."""
    rows = {row.name: row for row in compared(suites["better"], suites["base"]).rows}
    assert {n for n, r in rows.items() if r.test.p_by == "McNemar"} == {
        "popqa", "gsm8k", "ifeval", "bbh",
    }  # fmt: skip
    assert {n for n, r in rows.items() if r.test.p_by == "bootstrap"} == {
        "mmlu_mc", "mmlu_cot", "math", "truthfulqa", "humaneval", "humanevalplus",
    }  # fmt: skip
    assert {n for n, r in rows.items() if r.test.p_by == "t"} == {"drop", "alpaca_eval"}
    assert (rows["drop"].clusters, rows["drop"].df) == (40, 39)
    assert (rows["alpaca_eval"].clusters, rows["alpaca_eval"].df) == (5, 4)
    assert rows["math"].strata == 6
    assert rows["math"].discordant is not None
    assert rows["bbh"].strata == 1


def test_clusters_can_be_left_out(suites):
    rows = {r.name: r for r in compared(suites["better"], suites["base"], clusters=False).rows}
    assert rows["alpaca_eval"].clusters is None
    assert rows["alpaca_eval"].test.p_by == "bootstrap"
    assert rows["alpaca_eval"].df == pytest.approx(119)


def test_averages(suites):
    """Plain means of 11 with one MMLU, and of 10; HumanEval's two rows are not independent."""
    comparison = compared(suites["better"], suites["base"])
    rows = {row.name: row for row in comparison.rows}
    eleven, ten = comparison.averages
    assert eleven.label == "average of the 11"
    assert set(eleven.benchmarks) == {*ELEVEN, "mmlu_cot"}
    assert eleven.difference == pytest.approx(
        np.mean([rows[n].difference for n in eleven.benchmarks])
    )
    assert eleven.a == pytest.approx(np.mean([rows[n].a for n in eleven.benchmarks]))
    assert ten.label == "average of the 10 without AlpacaEval"
    assert set(ten.benchmarks) == set(eleven.benchmarks) - {"alpaca_eval"}
    independent = math.sqrt(sum(rows[n].se ** 2 for n in eleven.benchmarks)) / 11
    assert eleven.se > independent
    twins = [
        np.array([r["score"] for r in by_id(suites[arm], name)])
        for arm, name in itertools.product(("better", "base"), ("humaneval", "humanevalplus"))
    ]
    d = (twins[0] - twins[2], twins[1] - twins[3])
    covariance = np.cov(*d)[0, 1] / 120
    assert eleven.se**2 == pytest.approx(independent**2 + 2 * covariance / 121)
    assert eleven.test.interval_by == "bootstrap"
    width = eleven.test.hi - eleven.test.lo
    assert width == pytest.approx(2 * 1.96 * eleven.se, rel=0.12)


def test_either_mmlu_counts_in_the_average_and_both_are_labelled(suites, capsys):
    default = compared(suites["better"], suites["base"])
    other = compared(suites["better"], suites["base"], mmlu="mc")
    assert "mmlu_cot" in default.averages[0].benchmarks
    assert "mmlu_mc" in other.averages[0].benchmarks
    assert "mmlu_cot" not in other.averages[0].benchmarks
    text = run(capsys, suites["better"], suites["base"], mmlu="mc")
    assert "MMLU mc" in text and "MMLU CoT" in text
    assert "of the two MMLU tasks MMLU mc counts in the averages" in text


def test_part_of_the_suite_is_no_average_of_the_11(suites):
    part = compared(suites["better"], suites["base"], benchmarks=("gsm8k", "bbh"))
    assert [a.label for a in part.averages] == ["average of 2"]
    part = compared(suites["better"], suites["base"], benchmarks=("gsm8k", "bbh", "alpaca_eval"))
    assert [a.label for a in part.averages] == ["average of 3", "average of 2 without AlpacaEval"]
    assert compared(suites["better"], suites["base"], benchmarks=("gsm8k",)).averages == ()


def test_holm_over_all_benchmarks(suites):
    rows = compared(suites["like"], suites["base"]).rows
    ordered = sorted(rows, key=lambda row: row.test.p)
    running = 0.0
    for i, row in enumerate(ordered):
        running = max(running, min(1.0, (12 - i) * row.test.p))
        assert row.holm == pytest.approx(running)


def test_a_benchmark_among_others_is_judged_by_holm(tmp_path):
    """6 against 0: p = 2 / 64 = 0.031; beside another benchmark twice that, and not shown."""
    more, less = items([1.0] * 6 + [0] * 4), items([0.0] * 10)
    rows = {"gsm8k": (more, less), "bbh": (less, less)}
    a, b = (write(tmp_path / n, {k: v[i] for k, v in rows.items()}) for i, n in enumerate("ab"))
    found = {row.name: row for row in compared(a, b).rows}
    assert (found["gsm8k"].test.p, found["gsm8k"].holm) == pytest.approx((0.03125, 0.0625))
    assert found["gsm8k"].verdict == words.NONE
    (alone,) = compared(a, b, benchmarks=("gsm8k",)).rows
    assert alone.verdict == words.GAIN


def test_draws_depend_on_the_seed_and_not_on_what_else_is_compared(suites):
    whole = {r.name: r for r in compared(suites["better"], suites["base"]).rows}
    (alone,) = compared(suites["better"], suites["base"], benchmarks=("truthfulqa",)).rows
    assert alone.test.lo == whole["truthfulqa"].test.lo
    (again,) = compared(suites["better"], suites["base"], benchmarks=("truthfulqa",), seed=1).rows
    assert again.test.lo != alone.test.lo


def test_no_discordant_item_still_has_an_interval(tmp_path):
    """0 of 40 is no proof of none: z^2 / (40 + z^2) = 8.8 points each way."""
    a, b = (gsm8k(tmp_path / name, [1, 0] * 20) for name in "ab")
    (row,) = compared(a, b).rows
    assert (row.test.lo, row.test.hi) == pytest.approx((-0.0876, 0.0876), abs=1e-4)
    assert (row.test.p, row.verdict) == (1, words.NONE)


def test_shares_that_are_all_alike_have_no_interval(tmp_path, capsys):
    a, b = (write(tmp_path / n, {"truthfulqa": items([0.3, 0.4, 0.9] * 20)}) for n in "ab")
    (row,) = compared(a, b).rows
    assert (row.test.lo, row.test.p, row.verdict) == (None, 1, words.NONE)
    assert "TruthfulQA: no interval, all items differ alike (60 items)" in run(capsys, a, b)


def test_single_items_of_strata_are_no_certainty(tmp_path):
    """--limit 57 leaves subjects with one question: a bootstrap of them would have no width."""
    strata = [f"s{i}" for i in range(40)]
    rng = np.random.default_rng(0)
    a, b = (
        write(tmp_path / n, {"mmlu_mc": items(rng.random(40) < 0.6, stratum=strata)}) for n in "ab"
    )
    (row,) = compared(a, b).rows
    assert row.test.interval_by == "t"
    assert row.test.hi - row.test.lo > 0.2


# -- AlpacaEval ----------------------------------------------------------------------------------


def test_length_controlled_rates_are_compared_as_such(tmp_path):
    (a, rate_a), (b, rate_b) = alpaca(tmp_path / "a", 1), alpaca(tmp_path / "b", 2)
    (row,) = compared(a, b, clusters=False).rows
    assert (row.a, row.b) == pytest.approx((rate_a, rate_b))
    assert row.difference == pytest.approx(rate_a - rate_b)
    scores = [[r["score"] for r in by_id(place, "alpaca_eval")] for place in (a, b)]
    raw = Sampling(len(scores[0])).estimate(np.subtract(*scores))
    assert row.difference != pytest.approx(raw.value, abs=1e-4)
    assert row.se == pytest.approx(raw.se, rel=0.25)


@pytest.mark.data("alpaca_eval")
def test_raw_win_rates_of_real_models(tmp_path):
    """The golden difference and clustered error of two models, through files and back."""
    for name in ("3.2-1B", "3.2-3B"):
        path = ALPACA / f"FuseChat-Llama-{name}-Instruct" / "annotations.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            annotations = json.load(file)
        columns = {"cluster": [row["dataset"] for row in annotations]}
        rows = items([row["preference"] - 1 for row in annotations], **columns)
        write(tmp_path / name, {"alpaca_eval": rows})
    (row,) = compared(tmp_path / "3.2-3B", tmp_path / "3.2-1B").rows
    assert (100 * row.a, 100 * row.b) == pytest.approx((51.2967, 29.9219), abs=5e-5)
    assert 100 * row.difference == pytest.approx(21.3747, abs=5e-5)
    assert (100 * row.se, row.clusters) == (pytest.approx(1.6369, abs=5e-5), 5)
    (row,) = compared(tmp_path / "3.2-3B", tmp_path / "3.2-1B", clusters=False).rows
    assert 100 * row.se == pytest.approx(1.3681, abs=5e-5)
    assert (100 * row.test.lo, 100 * row.test.hi) == pytest.approx((18.7, 24.0), abs=0.25)


def test_a_rate_of_the_full_model_is_kept(tmp_path):
    (a, _), (b, _) = alpaca(tmp_path / "a", 1, score=0.61), alpaca(tmp_path / "b", 2, score=0.45)
    (row,) = compared(a, b).rows
    assert (row.a, row.b, row.difference) == pytest.approx((0.61, 0.45, 0.16))


def test_items_without_a_verdict_count_for_none(tmp_path, capsys):
    (a, _), (b, _) = (
        alpaca(tmp_path / "a", 1, missing={3, 7}),
        alpaca(tmp_path / "b", 2, missing={7}),
    )
    (row,) = compared(a, b).rows
    assert row.n == 148
    assert "AlpacaEval 2: 1 items without a verdict of the judge" in run(capsys, a, b)


def test_more_missing_items_than_unread_replies_are_an_error(tmp_path):
    (a, _), (b, _) = alpaca(tmp_path / "a", 1, missing={3}), alpaca(tmp_path / "b", 2)
    entries = {"alpaca_eval": {"comparisons": {"faults": {}}}}
    (a, _) = alpaca(tmp_path / "c", 1, missing={3}, entries=entries)
    with pytest.raises(UserError, match=r"1 items are missing in .*c, the first 'q3'"):
        compared(a, b)


def test_judge_is_named_with_the_number(suites, capsys):
    assert f"AlpacaEval 2 is judged by {JUDGE} (win rate)" in run(
        capsys, suites["better"], suites["base"]
    )


def test_two_judges_are_never_compared(tmp_path):
    (a, _), (b, _) = (
        alpaca(tmp_path / "a", 1),
        alpaca(tmp_path / "b", 2, entries={"judge": "gpt-4.1"}),
    )
    for allow in (False, True):
        with pytest.raises(UserError, match=r"two judges: weighted_.* in .*a, gpt-4\.1 in .*b"):
            compared(a, b, allow_different_settings=allow)


def test_a_benchmark_that_was_not_judged_is_left_out(tmp_path, capsys):
    rows = {"gsm8k": items(ONES), "alpaca_eval": items([0.5] * 10)}
    a = write(tmp_path / "a", rows)
    b = write(tmp_path / "b", rows, {"alpaca_eval": {"score": None, "judge": None}})
    text = run(capsys, a, b)
    assert f"AlpacaEval 2 is left out: it has no score in {b}" in text


# -- training seeds ------------------------------------------------------------------------------


def test_arms_of_several_runs(suites, capsys):
    comparison = compared(suites["arm"], suites["base arm"])
    assert (len(comparison.a.runs), len(comparison.b.runs)) == (3, 3)
    assert (comparison.a.name, comparison.b.name) == ("better", "base arm")
    assert all(row.test.p_by == "t" for row in comparison.rows)
    assert comparison.averages[0].verdict == words.GAIN
    assert all(row.discordant is None for row in comparison.rows)
    eleven = comparison.averages[0]
    assert sum(eleven.variance.values()) == pytest.approx(eleven.se**2)
    assert eleven.df < 5_000
    text = run(capsys, suites["arm"], suites["base arm"])
    assert "The intervals cover questions and training seeds (3 and 3 runs)." in text
    assert "NOT" not in text.replace("NOT MEASURED", "")


def test_scores_of_an_arm_are_means_over_its_runs(suites):
    comparison = compared(suites["arm"], suites["base"])
    recorded = [
        json.loads((suites["arm"] / f"seed-{i}" / "results.json").read_text())["benchmarks"]
        for i in range(3)
    ]
    for row in comparison.rows:
        assert row.a == pytest.approx(np.mean([r[row.name]["score"] for r in recorded]))


def test_seeds_that_differ_widen_the_interval(tmp_path):
    """The same mean score; runs that agree, and runs that do not."""
    for name, means in (("calm", (0.5, 0.5, 0.5)), ("wild", (0.1, 0.5, 0.9))):
        for i, mean in enumerate(means):
            rng = np.random.default_rng(i)
            scores = np.clip(mean + 0.05 * rng.normal(size=60), 0, 1)
            write(tmp_path / name / f"seed-{i}", {"truthfulqa": items(scores)})
    base = write(tmp_path / "base", {"truthfulqa": items([0.45] * 60)})
    (calm,) = compared(tmp_path / "calm", base).rows
    (wild,) = compared(tmp_path / "wild", base).rows
    assert wild.se > 10 * calm.se
    assert wild.variance["seeds_a"] > 0.9 * wild.se**2
    assert wild.df < 3
    assert (calm.verdict, wild.verdict) == (words.GAIN, words.NONE)


def test_one_run_each_is_said_to_leave_seeds_out(two_runs, capsys):
    text = run(capsys, *two_runs)
    assert "One training run each: the intervals cover the choice of questions and NOT the" in text


def test_one_run_against_several(suites, capsys):
    text = run(capsys, suites["arm"], suites["base"])
    assert "base is one run: the intervals cover questions and the training seed of the" in text
    assert "other side (3 runs), NOT the training seed of base, if it was trained." in text


def test_two_runs_are_called_rough(suites, capsys):
    seeds = [suites["arm"] / f"seed-{i}" for i in range(2)]
    text = run(capsys, seeds[0], suites["base"], also_a=(seeds[1],))
    assert "(2 runs), NOT" in text
    assert "Two runs say little about seeds: such intervals are rough." in text


def test_a_list_of_runs_is_an_arm_like_a_directory_of_them(suites):
    seeds = [suites["arm"] / f"seed-{i}" for i in range(3)]
    listed = compared(seeds[0], suites["base"], also_a=tuple(seeds[1:]))
    folder = compared(suites["arm"], suites["base"])
    assert [r.difference for r in listed.rows] == [r.difference for r in folder.rows]
    assert [r.se for r in listed.rows] == [r.se for r in folder.rows]


def test_a_run_counts_once(tmp_path, two_runs):
    with pytest.raises(UserError, match="is twice in one arm"):
        compared(two_runs[0], two_runs[1], also_a=(two_runs[0],))
    with pytest.raises(UserError, match="is in both arms"):
        compared(two_runs[0], two_runs[0])
    again = gsm8k(
        tmp_path / "again",
        ZEROS,
        model={"name": "a", "path": "x", "identity": f"sha {two_runs[0]}"},
    )
    with pytest.raises(UserError, match=r"evaluations of the same weights"):
        compared(two_runs[0], two_runs[1], also_a=(again,))


def test_the_same_weights_in_both_arms_are_noted(tmp_path, two_runs, capsys):
    again = gsm8k(
        tmp_path / "again",
        ZEROS,
        model={"name": "a2", "path": "x", "identity": f"sha {two_runs[0]}"},
    )
    assert "the same weights stand in both arms" in run(capsys, two_runs[0], again)


def test_runs_of_an_arm_must_be_alike_too(tmp_path, two_runs):
    other = gsm8k(tmp_path / "other", ONES, {"shots": 0})
    with pytest.raises(UserError, match=r"GSM8K: shots 8 in .*a, 0 in .*other"):
        compared(two_runs[0], two_runs[1], also_a=(other,))


def test_arms_of_the_same_name_are_told_apart(tmp_path):
    for place in ("x", "y"):
        gsm8k(tmp_path / place / "model", ONES)
    comparison = compared(tmp_path / "x" / "model", tmp_path / "y" / "model")
    assert (comparison.a.name, comparison.b.name) == ("x/model", "y/model")
