"""Protects `deltalearn compare`: what it refuses to compare, what it computes, and what it says.

A comparison of different items, settings, judges or splits must end in an error that says which; a
difference that was not shown must never be called equality; every number must be that of the items
in the files. Result directories are made here, in the format that `deltalearn evaluate` writes.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from deltalearn.cli.scores import compare as command
from deltalearn.comparing import forest, words
from deltalearn.comparing.command import Options, compare, run_compare
from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.length import Judged, length_controlled
from deltalearn.evaluate.harness.results import COLUMNS
from deltalearn.evaluate.paired import difference, mcnemar
from deltalearn.evaluate.paired.sampling import Sampling
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, ELEVEN

JUDGE = "weighted_alpaca_eval_gpt4_turbo (gpt-4-1106-preview)"
FAST = 1_000  # draws
HERE = Path(__file__).parent
DATA = Path(os.environ.get("DELTALEARN_DATA") or HERE.parents[1] / "shared" / "data")
ALPACA = DATA / "alpaca_eval"


def items(scores, **columns):
    """Rows of a benchmark; columns: a list each, or one value for all."""
    rows = []
    for i, score in enumerate(scores):
        row = {"id": f"q{i}", "stratum": "", "cluster": "", "prompt": "p", "output": "o"}
        row |= {"extracted": "", "gold": f"gold {i}", "score": float(score)}
        own = {k: v[i] if isinstance(v, list) else v for k, v in columns.items()}
        rows.append(row | own)
    return rows


def entry(name, rows, **changed):
    """A benchmark of results.json that belongs to the rows."""
    benchmark = BY_NAME[name]
    strata = [row["stratum"] for row in rows] if benchmark.aggregation == "macro" else None
    scores = np.array([row["score"] for row in rows])
    value = {
        "score": float(Sampling(len(rows), strata=strata).mean(scores)),
        "stderr": 0.01,
        "metric": benchmark.metric,
        "aggregation": benchmark.aggregation,
        "n": len(rows),
        "full_n": len(rows),
        "subset": False,
        "shots": 8,
        "chat": True,
        "max_tokens": 512,
        "stops": ["\n\n"],
        "notes": [],
        "judge": JUDGE if name == "alpaca_eval" else None,
    }
    return value | changed


def write(directory: Path, benchmarks, entries=None, **header) -> Path:
    """A result directory of {name: rows}; entries: changes of results.json by benchmark."""
    found = {}
    for name, rows in benchmarks.items():
        path = directory / "items" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), path)
        found[name] = entry(name, rows, **(entries or {}).get(name, {}))
    value = {
        "format": 1,
        "suite": "tulu3",
        "model": {"name": directory.name, "path": "x", "identity": f"sha {directory}"},
        "backend": "vllm",
        "versions": {},
        "split": "test",
        "limit": None,
        "data": "hub",
        "benchmarks": found,
        "not_run": {},
        "average": None,
    }
    (directory / "results.json").write_text(json.dumps(value | header), encoding="utf-8")
    return directory


def suite(directory: Path, gain: float, seed: int, size: int = 120, entries=None, **header) -> Path:
    """All twelve benchmarks; the same items are hard for every model."""
    benchmarks = {}
    for place, benchmark in enumerate(ALL):
        family = "humaneval" if benchmark.kind == "code" else benchmark.name
        hard = np.random.default_rng([place if benchmark.kind != "code" else 99, 0])
        z = hard.normal(size=size) + gain
        z = z + 0.5 * np.random.default_rng([seed, place]).normal(size=size)
        smooth = benchmark.name in (
            "alpaca_eval",
            "truthfulqa",
            "drop",
            "humaneval",
            "humanevalplus",
        )
        scores = 1 / (1 + np.exp(-2 * z)) if smooth else (z > 0).astype(float)
        columns = {"id": [f"{family}/{i}" for i in range(size)]}
        if benchmark.aggregation == "macro":
            columns["stratum"] = [f"s{i % 6}" for i in range(size)]
        if benchmark.name == "drop":
            columns["cluster"] = [f"passage {i // 3}" for i in range(size)]
        if benchmark.name == "alpaca_eval":
            columns["cluster"] = [f"source {i % 5}" for i in range(size)]
        benchmarks[benchmark.name] = items(scores, **columns)
    return write(directory, benchmarks, entries, **header)


def gsm8k(directory: Path, scores, entries=None, **header) -> Path:
    return write(directory, {"gsm8k": items(scores)}, {"gsm8k": entries or {}}, **header)


def compared(a, b, **options):
    return compare(Options(a=a, b=b, draws=FAST, **options))


def run(capsys, a, b, **options) -> str:
    """What is printed, in one line: a terminal breaks lines where it likes."""
    run_compare(Options(a=a, b=b, draws=FAST, **options))
    return " ".join(capsys.readouterr().out.split())


ONES = [1.0, 1, 1, 1, 1, 1, 1, 1, 0, 0]
ZEROS = [0.0, 0, 0, 0, 0, 0, 0, 1, 0, 1]


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """7 items that only A answers, 1 that only B answers, of 10."""
    return gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS)


@pytest.fixture(scope="module")
def suites(tmp_path_factory) -> dict[str, Path]:
    """Whole suites: base, two clearly better seeds, one like base."""
    root = tmp_path_factory.mktemp("suites")
    for i in range(3):
        suite(root / "better" / f"seed-{i}", 0.4 + 0.02 * i, 10 + i)
        suite(root / "base arm" / f"seed-{i}", 0.0, 20 + i)
    return {
        "base": suite(root / "base", 0.0, 1),
        "like": suite(root / "like", 0.02, 2),
        "better": suite(root / "good", 0.4, 3),
        "arm": root / "better",
        "base arm": root / "base arm",
    }


# -- numbers -------------------------------------------------------------------------------------


def test_one_benchmark_by_hand(two):
    """b = 7, c = 1: 60 points; p = 2 (1 + 8) / 256 = 0.0703; not shown, whatever it looks like."""
    (row,) = compared(*two).rows
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


def test_order_of_items_in_the_files_does_not_matter(tmp_path, two):
    rows = items(ZEROS)
    other = write(
        tmp_path / "shuffled", {"gsm8k": [rows[i] for i in (3, 1, 9, 0, 2, 8, 7, 5, 6, 4)]}
    )
    assert compared(two[0], other).rows[0].discordant == (7, 1)
    assert compared(other, two[0]).rows[0].discordant == (1, 7)


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
    rows = {r.name: r for r in compared(suites["better"], suites["base"], no_clusters=True).rows}
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
        np.array([r["score"] for r in _sorted(suites[arm], name)])
        for arm, name in itertools.product(("better", "base"), ("humaneval", "humanevalplus"))
    ]
    d = (twins[0] - twins[2], twins[1] - twins[3])
    covariance = np.cov(*d)[0, 1] / 120
    assert eleven.se**2 == pytest.approx(independent**2 + 2 * covariance / 121)
    assert eleven.test.interval_by == "bootstrap"
    width = eleven.test.hi - eleven.test.lo
    assert width == pytest.approx(2 * 1.96 * eleven.se, rel=0.12)


def _sorted(directory, name):
    rows = pq.read_table(directory / "items" / f"{name}.parquet").to_pylist()
    return sorted(rows, key=lambda row: row["id"])


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


def alpaca(directory, seed, n=150, missing=(), entries=None, score=None):
    rng = np.random.default_rng(seed)
    rows = items(
        rng.random(n),
        cluster=[f"source {i % 3}" for i in range(n)],
        output=["o" * int(k) for k in rng.integers(100, 3_000, n)],
        gold=["g" * int(k) for k in np.random.default_rng(0).integers(100, 3_000, n)],
    )
    rows = [row for i, row in enumerate(rows) if i not in missing]
    judged = Judged.of(*([row[k] for row in rows] for k in ("score", "output", "gold")))
    rate = length_controlled(judged, fit="maximum likelihood").win_rate if score is None else score
    changed = {"score": rate, "metric": "length-controlled, minimal", "n": len(rows)}
    changed |= {"alpaca_eval": {"comparisons": {"faults": {"no logprobs": len(missing)}}}}
    return write(directory, {"alpaca_eval": rows}, {"alpaca_eval": changed | (entries or {})}), rate


def test_length_controlled_rates_are_compared_as_such(tmp_path):
    (a, rate_a), (b, rate_b) = alpaca(tmp_path / "a", 1), alpaca(tmp_path / "b", 2)
    (row,) = compared(a, b, no_clusters=True).rows
    assert (row.a, row.b) == pytest.approx((rate_a, rate_b))
    assert row.difference == pytest.approx(rate_a - rate_b)
    scores = [[r["score"] for r in _sorted(place, "alpaca_eval")] for place in (a, b)]
    raw = difference.paired(*map(np.array, scores))
    assert row.difference != pytest.approx(raw.value, abs=1e-4)
    assert row.se == pytest.approx(raw.se, rel=0.25)


@pytest.mark.skipif(not ALPACA.is_dir(), reason=f"no alpaca_eval in {ALPACA.parent}")
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
    (row,) = compared(tmp_path / "3.2-3B", tmp_path / "3.2-1B", no_clusters=True).rows
    assert 100 * row.se == pytest.approx(1.3681, abs=5e-5)
    assert (100 * row.test.lo, 100 * row.test.hi) == pytest.approx((18.7, 24.0), abs=0.25)


def test_a_rate_of_the_full_model_is_kept(tmp_path):
    (a, _), (b, _) = alpaca(tmp_path / "a", 1, score=0.61), alpaca(tmp_path / "b", 2, score=0.45)
    (row,) = compared(a, b).rows
    assert (row.a, row.b, row.difference) == pytest.approx((0.61, 0.45, 0.16))


def test_references_may_stand_beside_their_writer(tmp_path):
    (a, _), (b, _) = alpaca(tmp_path / "a", 1), alpaca(tmp_path / "b", 2)
    before = compared(a, b).rows[0].se
    for place in (a, b):
        path = place / "items" / "alpaca_eval.parquet"
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["gold"] = json.dumps({"output": row["gold"], "generator": "gpt4"})
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), path)
    assert compared(a, b).rows[0].se == pytest.approx(before)


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


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shots": 5}, "GSM8K: shots 8 in .*a, 5 in .*b"),
        ({"chat": False}, "GSM8K: chat true in .*a, false in .*b"),
        ({"metric": "strict match"}, "GSM8K: metric exact match in .*a, strict match in .*b"),
        ({"max_tokens": 256}, "GSM8K: max_tokens 512 in .*a, 256 in .*b"),
        ({"stops": ["Q"]}, r'GSM8K: stops \["\\n\\n"\] in .*a, \["Q"\] in .*b'),
        ({"temperature": 0.8}, "GSM8K: temperature null in .*a, 0.8 in .*b"),
        ({"samples": 20}, "GSM8K: samples null in .*a, 20 in .*b"),
    ],
)
def test_different_settings(tmp_path, capsys, changed, message):
    a, b = gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS, changed)
    with pytest.raises(UserError, match=message) as caught:
        compared(a, b)
    assert "--allow-different-settings" in str(caught.value)
    text = run(capsys, a, b, allow_different_settings=True)
    assert f"NOT MEASURED ALIKE: GSM8K: {next(iter(changed))}" in text


def test_different_limits(tmp_path, capsys):
    a, b = gsm8k(tmp_path / "a", ONES, limit=10), gsm8k(tmp_path / "b", ZEROS, limit=20)
    with pytest.raises(UserError, match=r"limit 10 in .*a, 20 in .*b"):
        compared(a, b)
    assert "NOT MEASURED ALIKE: limit 10" in run(capsys, a, b, allow_different_settings=True)


def test_dev_against_test(tmp_path):
    a, b = gsm8k(tmp_path / "a", ONES, split="dev"), gsm8k(tmp_path / "b", ZEROS)
    for allow in (False, True):
        with pytest.raises(UserError, match=r"different splits: dev in .*a, test in .*b"):
            compared(a, b, allow_different_settings=allow)


def test_two_ways_of_averaging(tmp_path):
    a, b = gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS, {"aggregation": "macro"})
    with pytest.raises(UserError, match=r"GSM8K: averaged in two ways: mean in .*a, macro in .*b"):
        compared(a, b, allow_different_settings=True)


def test_mmlu_asked_in_two_ways(tmp_path):
    strata = ["x", "y"] * 5
    a = write(tmp_path / "a", {"mmlu_mc": items(ONES, stratum=strata), "gsm8k": items(ONES)})
    b = write(tmp_path / "b", {"mmlu_cot": items(ZEROS, stratum=strata), "gsm8k": items(ONES)})
    with pytest.raises(UserError, match="MMLU was asked as MMLU mc of a and as MMLU CoT of b"):
        compared(a, b, allow_different_settings=True)


def test_items_missing_on_one_side(tmp_path, two):
    short = gsm8k(tmp_path / "short", ZEROS[:8])
    message = r"GSM8K: 2 items are missing in .*short, the first 'q8'"
    for pair in ((two[0], short), (short, two[0])):
        with pytest.raises(UserError, match=message):
            compared(*pair, allow_different_settings=True)


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [("gold", "another", "gold answer"), ("cluster", "c", "cluster"), ("stratum", "s", "stratum")],
)
def test_another_gold_for_the_same_item(tmp_path, two, column, value, word):
    rows = items(ZEROS)
    rows[4][column] = value
    other = write(tmp_path / "other", {"gsm8k": rows})
    with pytest.raises(UserError, match=rf"GSM8K: the item 'q4' has another {word} in .*other"):
        compared(two[0], other, allow_different_settings=True)


def test_no_benchmark_in_common(tmp_path, two):
    other = write(tmp_path / "other", {"bbh": items(ONES)})
    with pytest.raises(UserError, match="no benchmark is scored on both sides: a has GSM8K, other"):
        compared(two[0], other)


def test_benchmarks_of_one_side_are_left_out_with_a_note(tmp_path, two, capsys):
    more = write(tmp_path / "more", {"gsm8k": items(ZEROS), "bbh": items(ONES)})
    assert f"note: BBH is left out: it has no score in {two[0]}" in run(capsys, two[0], more)
    with pytest.raises(UserError, match=r"bbh: it has no score in .*a; evaluate it there too"):
        compared(two[0], more, benchmarks=("bbh",))
    with pytest.raises(UserError, match="arc: not scored here; there are gsm8k and bbh"):
        compared(two[0], more, benchmarks=("arc",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:-1], r"9 items, results\.json speaks of 10; evaluate gsm8k again"),
        (lambda rows: rows[:-1] + rows[:1], "the item 'q0' is there twice"),
        (lambda rows: [{**rows[0], "score": 1.2}, *rows[1:]], r"scores must be in \[0, 1\]"),
        (lambda rows: [{**rows[0], "score": math.nan}, *rows[1:]], r"scores must be in \[0, 1\]"),
        (
            lambda rows: [{**rows[0], "score": 0.0}, *rows[1:]],
            r"GSM8K is 0\.800000 in results\.json and 0\.700000 by its items",
        ),
    ],
    ids=["torn", "twice", "beyond", "nan", "of another run"],
)
def test_files_that_do_not_belong_together(two, damage, message):
    path = two[0] / "items" / "gsm8k.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(damage(rows), COLUMNS), path)
    with pytest.raises(UserError, match=message):
        compared(*two)


def test_files_that_are_none(tmp_path, two):
    path = two[0] / "items" / "gsm8k.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"gsm8k\.parquet: cannot be read"):
        compared(*two)
    path.unlink()
    with pytest.raises(UserError, match=r"gsm8k\.parquet: cannot be read"):
        compared(*two)
    pq.write_table(pa.table({"id": ["q0"], "score": [1.0]}), path)
    with pytest.raises(UserError, match=r"evaluate gsm8k again"):
        compared(*two)
    with pytest.raises(UserError, match=r"nowhere: no results\.json in it"):
        compared(tmp_path / "nowhere", two[1])


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


def test_one_run_each_is_said_to_leave_seeds_out(two, capsys):
    text = run(capsys, *two)
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


def test_a_run_counts_once(tmp_path, two):
    with pytest.raises(UserError, match="is twice in one arm"):
        compared(two[0], two[1], also_a=(two[0],))
    with pytest.raises(UserError, match="is in both arms"):
        compared(two[0], two[0])
    again = gsm8k(
        tmp_path / "again", ZEROS, model={"name": "a", "path": "x", "identity": f"sha {two[0]}"}
    )
    with pytest.raises(UserError, match=r"evaluations of the same weights"):
        compared(two[0], two[1], also_a=(again,))


def test_the_same_weights_in_both_arms_are_noted(tmp_path, two, capsys):
    again = gsm8k(
        tmp_path / "again", ZEROS, model={"name": "a2", "path": "x", "identity": f"sha {two[0]}"}
    )
    assert "the same weights stand in both arms" in run(capsys, two[0], again)


def test_runs_of_an_arm_must_be_alike_too(tmp_path, two):
    other = gsm8k(tmp_path / "other", ONES, {"shots": 0})
    with pytest.raises(UserError, match=r"GSM8K: shots 8 in .*a, 0 in .*other"):
        compared(two[0], two[1], also_a=(other,))


def test_arms_of_the_same_name_are_told_apart(tmp_path):
    for place in ("x", "y"):
        gsm8k(tmp_path / place / "model", ONES)
    comparison = compared(tmp_path / "x" / "model", tmp_path / "y" / "model")
    assert (comparison.a.name, comparison.b.name) == ("x/model", "y/model")


# -- what is said --------------------------------------------------------------------------------


def test_verdict_of_a_gain(suites, capsys):
    comparison = compared(suites["better"], suites["base"])
    first = words.verdict(comparison)[0]
    one = comparison.averages[0]
    assert first.startswith(
        f"good is better than base on the average of the 11 by {100 * one.difference:.2f} points "
        f"(95% interval +{100 * one.test.lo:.2f} to +{100 * one.test.hi:.2f}, p "
    )
    assert "no difference shown" not in first.lower()
    assert first in run(capsys, suites["better"], suites["base"])


def test_verdict_of_a_loss(suites):
    first = words.verdict(compared(suites["base"], suites["better"]))[0]
    assert first.startswith("base is worse than good on the average of the 11 by ")


def test_verdict_of_none_never_says_equal(suites, capsys):
    comparison = compared(suites["like"], suites["base"])
    first = words.verdict(comparison)[0]
    assert first.startswith("No difference shown between like and base on the average of the 11: ")
    detectable = f"{100 * comparison.averages[0].detectable:.2f}"
    assert "That does not show that there is none" in first
    assert f"a true difference of {detectable} points would be missed one time in five" in first
    text = run(capsys, suites["like"], suites["base"]).lower()
    for word in ("equal", "equivalent", "identical", "no difference between", "as good as"):
        assert word not in text
    assert "no difference shown on any of 12" in text


def test_verdict_of_one_benchmark_follows_the_test(two):
    """60 points and p = 0.07."""
    first = words.verdict(compared(*two))[0]
    assert first.startswith("No difference shown between a and b on GSM8K: +60.00 points (95%")
    assert "p = 0.070" in first


def test_by_benchmark_and_without_alpaca_eval(suites):
    sentences = words.verdict(compared(suites["better"], suites["base"]))
    by = next(s for s in sentences if s.startswith("By benchmark"))
    assert by.startswith("By benchmark, 12 tests held to 5% together (Holm): better on ")
    assert any(s.startswith("Without AlpacaEval: better by ") for s in sentences)
    sentences = words.verdict(compared(suites["like"], suites["base"]))
    assert any(s.startswith("Without AlpacaEval: no difference shown, ") for s in sentences)


def test_split_and_numbers_are_named(tmp_path, suites, capsys):
    assert "Test split, 1,440 items of 12 benchmarks." in run(
        capsys, suites["better"], suites["base"]
    )
    a, b = (gsm8k(tmp_path / n, ONES, split="dev") for n in "ab")
    assert "Development split, 10 items of 1 benchmark; scores to choose by, not to report." in run(
        capsys, a, b
    )


def test_subsets_are_named(tmp_path, capsys):
    part = {"gsm8k": {"full_n": 1319, "subset": True}}
    rows = {"gsm8k": items(ONES), "bbh": items(ONES)}
    a, b = (write(tmp_path / name, rows, part) for name in "ab")
    text = run(capsys, a, b)
    assert "SUBSETS: GSM8K 10 of 1,319." in text
    assert "10 of 1,319" in text.split("SUBSETS")[0]


def test_how_everything_was_measured_is_printed(suites, capsys):
    text = run(capsys, suites["better"], suites["base"])
    assert "MATH: flex exact match, macro of 6, 8 shots, 512 tokens, stops \\n\\n" in text
    assert "BBH: exact match, micro, 8 shots" in text
    assert "DROP: F1, mean, in 40 clusters, 8 shots" in text


def test_few_clusters_are_pointed_out(suites, capsys):
    text = run(capsys, suites["better"], suites["base"])
    assert "AlpacaEval 2: its 120 items come from 5 sources" in text
    assert "DROP: its" not in text


def test_backend_and_data_are_noted(tmp_path, two, capsys):
    other = gsm8k(tmp_path / "other", ZEROS, backend="hf", data="local")
    text = run(capsys, two[0], other)
    assert "different backend: vllm in" in text
    assert "different data: hub in" in text


def test_numbers_are_never_cut_in_a_narrow_terminal(suites, capsys, monkeypatch):
    from rich.console import Console

    from deltalearn.comparing import table

    class Narrow(Console):
        def __init__(self, **options):
            super().__init__(**options, width=80, force_terminal=True, color_system=None)

    monkeypatch.setattr(table, "Console", Narrow)
    run_compare(Options(a=suites["better"], b=suites["base"], draws=FAST))
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "in a wider terminal" in text


def test_hostile_names_are_shown_and_not_obeyed(tmp_path, capsys):
    evil = "\x1b[31m[bold]\u202egood\n model[/bold]"
    a = gsm8k(tmp_path / "a", ONES, model={"name": evil, "identity": "1"})
    b = gsm8k(
        tmp_path / "b", ZEROS, {"judge": "\x1b]0;x\x07"}, model={"name": "b", "identity": "2"}
    )
    c = gsm8k(tmp_path / "c", ZEROS, model={"name": "b", "identity": "2"})
    run_compare(Options(a=a, b=c, draws=FAST, plot=tmp_path / "plot"))
    text = capsys.readouterr().out
    assert not any(sign in text for sign in ("\x1b", "\u202e", "\x07"))
    assert "[bold]" in text and "⟨U+202E⟩" in text
    with pytest.raises(UserError) as caught:
        compared(a, b)
    assert "\x1b" not in str(caught.value)


# -- JSON ----------------------------------------------------------------------------------------

TOP = {
    "format", "a", "b", "split", "level", "alpha", "power", "bootstrap", "verdict", "benchmarks",
    "averages", "notes",
}  # fmt: skip
NUMBERS = {"a", "b", "difference", "se", "df", "test", "detectable", "variance", "verdict"}
ROW = {
    "name", "title", "n", "full_n", "subset", "strata", "clusters", "unpaired_se", "correlation",
    "discordant", "holm", "measured",
}  # fmt: skip


def test_json_schema(suites, tmp_path, capsys):
    path = tmp_path / "sub" / "compare.json"
    run_compare(Options(a=suites["arm"], b=suites["base"], draws=FAST, json=path))
    assert "average of the 11" in capsys.readouterr().out
    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(value) == TOP
    assert value["format"] == 1
    assert [run["name"] for run in value["a"]["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert value["bootstrap"] == {"draws": FAST, "seed": 0}
    for row in value["benchmarks"]:
        assert set(row) == NUMBERS | ROW
        assert set(row["test"]) == {"lo", "hi", "interval_by", "p", "p_by"}
        assert row["verdict"] in ("gain", "loss", "no difference shown")
        assert {"metric", "aggregation", "shots", "chat", "max_tokens", "stops", "judge"} <= set(
            row["measured"]
        )
    for average in value["averages"]:
        assert set(average) == NUMBERS | {"label", "benchmarks", "n"}
    assert value["verdict"] == words.verdict(compared(suites["arm"], suites["base"]))


def test_json_alone_on_standard_output(two, capsys):
    run_compare(Options(a=two[0], b=two[1], draws=FAST, json=Path("-")))
    value = json.loads(capsys.readouterr().out)
    assert value["benchmarks"][0]["discordant"] == [7, 1]


def test_json_has_no_nan(tmp_path, capsys):
    a, b = gsm8k(tmp_path / "a", [1]), gsm8k(tmp_path / "b", [0])
    run_compare(Options(a=a, b=b, json=Path("-")))
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["benchmarks"]
    assert row["se"] is None
    text = run(capsys, a, b)
    assert "No difference shown" in text


# -- the plot ------------------------------------------------------------------------------------


def test_plot_is_written_twice_and_is_the_same_again(suites, tmp_path, capsys):
    text = run(capsys, suites["better"], suites["base"], plot=tmp_path / "forest")
    assert "forest.svg" in text and "forest.png" in text
    png = (tmp_path / "forest.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 2_000 and height > 1_200
    assert (tmp_path / "forest.svg").read_text().lstrip().startswith("<?xml")
    before = (tmp_path / "forest.svg").read_bytes()
    run(capsys, suites["better"], suites["base"], plot=tmp_path / "forest.png")
    assert (tmp_path / "forest.svg").read_bytes() == before
    with pytest.raises(UserError, match=r"\.svg and \.png"):
        run(capsys, suites["better"], suites["base"], plot=tmp_path / "forest.pdf")


@pytest.mark.parametrize("arms", ["suites", "narrow"])
def test_texts_of_the_plot_do_not_touch(suites, tmp_path, monkeypatch, arms):
    """The longest labels and numbers that occur, and names as long as they get."""
    figures = []
    monkeypatch.setattr(forest, "_save", lambda figure, paths: figures.append(_boxes(figure)))
    a, b = suites["better"], suites["base"]
    if arms == "narrow":
        name = {"name": "a model with a name that is as long as names are let be and longer still"}
        a = suite(tmp_path / "a", 9.0, 3, model=name, limit=7, size=18)
        b = suite(tmp_path / "b", -9.0, 4, model=name, limit=7, size=18)
    forest.save_forest(compared(a, b), tmp_path / "plot")
    (boxes, canvas) = figures[0]
    for text, box in boxes:
        assert canvas.x0 <= box.x0 and box.x1 <= canvas.x1, text
        assert canvas.y0 <= box.y0 and box.y1 <= canvas.y1, text
    for (one, x), (other, y) in itertools.combinations(boxes, 2):
        assert not x.overlaps(y), (one, other)


def _boxes(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts], figure.bbox


# -- the plan ------------------------------------------------------------------------------------


def test_plan_prints_the_table(capsys):
    run_compare(Options(plan=True, discordance=0.16))
    text = " ".join(capsys.readouterr().out.split())
    for line in ("MMLU CoT 14,042 0.95 no", "PopQA 14,267 0.94 yes", "GSM8K 1,319 3.09 no"):
        assert line in text
    for line in ("HumanEval 164 8.75 no", "11-average 1.36 no", "BBH 6,511 1.39 no"):
        assert line in text
    assert "standard error of the 11-average 0.49 to 0.63 points" in text
    assert "To see 1 point a benchmark needs 12,559 items." in text


def test_plan_as_json(capsys):
    run_compare(Options(plan=True, sd=0.3, effect=2.5, json=Path("-")))
    value = json.loads(capsys.readouterr().out)
    assert value["average"]["independent"]["se"] == pytest.approx(0.0036, abs=5e-5)
    assert value["items_needed"] == math.ceil((2.801585 * 0.3 / 0.025) ** 2)
    assert len(value["benchmarks"]) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--plan needs either --discordance"),
        ({"discordance": 0.1, "sd": 0.3}, "--plan needs either --discordance"),
        ({"discordance": 1.5}, "--discordance 1.5: a share above 0, at most 1"),
        ({"sd": 0.0}, "--sd 0.0"),
        ({"sd": 0.3, "effect": 0.0}, "--effect 0.0"),
        ({"sd": 0.3, "a": Path("x")}, "A has no effect with --plan"),
        ({"sd": 0.3, "plot": Path("x")}, "--plot has no effect with --plan"),
    ],
)
def test_plan_refuses(options, message):
    with pytest.raises(UserError, match=message):
        run_compare(Options(plan=True, **options))


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give two arms, A and B"),
        ({"a": Path("x")}, "give two arms, A and B"),
        ({"a": Path("x"), "b": Path("y"), "discordance": 0.1}, "has no effect without --plan"),
        ({"a": Path("x"), "b": Path("y"), "draws": 10}, "--draws 10: too few"),
    ],
)
def test_options_without_sense(options, message):
    with pytest.raises(UserError, match=message):
        run_compare(Options(**options))


def test_mmlu_must_be_there(two):
    with pytest.raises(UserError, match="--mmlu mc: it is not scored in both arms"):
        compared(*two, mmlu="mc")
    with pytest.raises(UserError, match="--mmlu x: there are cot and mc"):
        compared(*two, mmlu="x")


def test_command_line(suites, tmp_path):
    app = typer.Typer()
    app.command()(command)
    base = str(suites["base"])
    seeds = [str(suites["arm"] / f"seed-{i}") for i in range(3)]
    more = ["--also-a", seeds[1], "--also-a", seeds[2], "--benchmark", "gsm8k", "--draws", "500"]
    out = tmp_path / "numbers.json"
    result = CliRunner().invoke(app, [seeds[0], base, *more, "--json", str(out), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "GSM8K" in result.output
    value = json.loads(out.read_text())
    assert len(value["a"]["runs"]) == 3
    assert value["bootstrap"] == {"draws": 500, "seed": 3}


def test_command_imports_nothing_heavy():
    code = (
        "import sys, deltalearn.cli.scores; print({'numpy', 'scipy', 'pyarrow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
