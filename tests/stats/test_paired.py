"""Protects the statistics of `deltalearn compare`: values by hand, published golden numbers, scipy.

The golden numbers are those of real data: the preferences of one judge for three models on the 805
instructions of AlpacaEval, with the differences, correlations, standard errors (unpaired, paired,
clustered), McNemar counts and p values and bootstrap intervals that were computed independently.
How often the intervals hold the truth is in test_paired_coverage.py.
"""

from __future__ import annotations

import gzip
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers.data import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deltalearn.compare.power_plan import EFFECTIVE, Plan
from deltalearn.evaluate.alpaca.length_control import ScoredPairs, minimal_rates, pseudo_scores
from deltalearn.stats import bootstrap, mcnemar, power, seeds
from deltalearn.stats.holm import holm
from deltalearn.stats.joint import joint
from deltalearn.stats.paired import Paired
from deltalearn.stats.sampling import Estimate, Sampling

ALPACA = DATA / "alpaca_eval"
needs_alpaca = pytest.mark.data("alpaca_eval")


def score(x, strata=None, clusters=None) -> Estimate:
    return Sampling(len(x), strata=strata, clusters=clusters).estimate(np.asarray(x, dtype=float))


def correlation_of(a, b) -> float | None:
    return Paired("x", np.asarray(a)[None], np.asarray(b)[None], Sampling(len(a))).correlation


def difference_of(a, b) -> Estimate:
    return score(np.asarray(a, dtype=float) - b)


# -- golden numbers ------------------------------------------------------------------------------

# pair: difference, correlation, unpaired, paired, clustered, with G / (G - 1), sd of d; points
GOLDEN = {
    ("3.2-3B", "3.2-1B"): (21.3747, 0.5489, 2.0346, 1.3681, 1.4641, 1.6369, 38.8163),
    ("3.1-8B", "3.2-3B"): (12.0349, 0.6058, 2.0546, 1.2909, 1.3190, 1.4747, 36.6267),
    ("3.1-8B", "3.2-1B"): (33.4097, 0.4543, 1.9913, 1.4711, 1.1581, 1.2948, 41.7389),
}
BOOTSTRAP = {
    ("3.2-3B", "3.2-1B"): (18.7, 24.0),
    ("3.1-8B", "3.2-3B"): (9.5, 14.6),
    ("3.1-8B", "3.2-1B"): (30.5, 36.3),
}
MCNEMAR = {
    ("3.2-3B", "3.2-1B"): (222, 31, 9.00e-37),
    ("3.1-8B", "3.2-3B"): (143, 49, 7.26e-12),
    ("3.1-8B", "3.2-1B"): (305, 20, 1.22e-66),
}
DETECTABLE = {
    ("3.2-3B", "3.2-1B"): 3.83,
    ("3.1-8B", "3.2-3B"): 3.62,
    ("3.1-8B", "3.2-1B"): 4.12,
}
PAIRS = list(GOLDEN)
pairs = pytest.mark.parametrize("pair", PAIRS, ids=" minus ".join)


@pytest.fixture(scope="module")
def models():
    """{name: annotations}, rows aligned."""
    found = {}
    for name in ("3.2-1B", "3.2-3B", "3.1-8B"):
        path = ALPACA / f"FuseChat-Llama-{name}-Instruct" / "annotations.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found[name] = json.load(file)
    texts = [[row["instruction"] for row in rows] for rows in found.values()]
    assert texts[0] == texts[1] == texts[2]
    return found


def preference(rows) -> np.ndarray:
    return np.array([row["preference"] - 1 for row in rows])


def judged(rows) -> ScoredPairs:
    texts = ([row[f"output_{i}"] for row in rows] for i in (2, 1))
    return ScoredPairs.of(preference(rows), *texts)


@needs_alpaca
@pairs
def test_golden_differences_and_standard_errors(models, pair):
    a, b = (preference(models[name]) for name in pair)
    sources = [row["dataset"] for row in models[pair[0]]]
    value, correlation, unpaired, paired, clustered, corrected, sd = GOLDEN[pair]
    one = difference_of(a, b)
    assert 100 * one.value == pytest.approx(value, abs=5e-5)
    assert correlation_of(a, b) == pytest.approx(correlation, abs=5e-5)
    apart = math.hypot(score(a).se, score(b).se)
    assert 100 * apart == pytest.approx(unpaired, abs=5e-5)
    assert 100 * one.se == pytest.approx(paired, abs=5e-5)
    assert one.df == 804
    whole = score(a - b, clusters=sources)
    assert 100 * whole.se * math.sqrt(4 / 5) == pytest.approx(clustered, abs=5e-5)
    assert 100 * whole.se == pytest.approx(corrected, abs=5e-5)
    assert whole.df == 4
    assert 100 * np.std(a - b, ddof=1) == pytest.approx(sd, abs=5e-5)


@pytest.mark.slow
@needs_alpaca
@pairs
def test_golden_bootstrap(models, pair):
    a, b = (preference(models[name]) for name in pair)
    draws = bootstrap.resample((a - b)[:, None], Sampling(805), draws=20_000)[:, 0]
    assert 100 * draws.std() == pytest.approx(GOLDEN[pair][3], rel=0.02)
    ends = [100 * end for end in bootstrap.percentile(draws)]
    assert ends == pytest.approx(BOOTSTRAP[pair], abs=0.13)  # the goldens have one decimal
    assert 100 * np.array(difference_of(a, b).interval()) == pytest.approx(ends, abs=0.1)
    assert bootstrap.p_value(draws) == 2 / 20_001


@needs_alpaca
@pairs
def test_golden_mcnemar_of_wins(models, pair):
    a, b = (preference(models[name]) > 0.5 for name in pair)
    only_a, only_b, p = MCNEMAR[pair]
    assert mcnemar.discordant(a, b) == (only_a, only_b)
    assert mcnemar.p_value(only_a, only_b) == pytest.approx(p, rel=0.005)


@needs_alpaca
@pairs
def test_golden_detectable_effect(models, pair):
    a, b = (preference(models[name]) for name in pair)
    found = power.detectable(np.std(a - b, ddof=1), 805)
    assert 100 * found == pytest.approx(DETECTABLE[pair], abs=0.005)


@needs_alpaca
def test_golden_score_of_one_model(models):
    for name, mean, se in (
        ("3.2-1B", 29.9219, 1.3935),
        ("3.2-3B", 51.2967, 1.4826),
        ("3.1-8B", 63.3316, 1.4225),
    ):
        one = score(preference(models[name]))
        assert (100 * one.value, 100 * one.se) == pytest.approx((mean, se), abs=5e-5)


@needs_alpaca
def test_golden_length_controlled_rates_as_scores_of_items(models):
    """The mean is the rate; the error that of a bootstrap which refits, alone and paired."""
    counts = np.random.default_rng(0).multinomial(805, [1 / 805] * 805, size=1_500)
    scores, draws = {}, {}
    for name, rate in (("3.2-1B", 25.935), ("3.2-3B", 53.950), ("3.1-8B", 65.072)):
        own = judged(models[name])
        scores[name] = pseudo_scores(own)
        assert 100 * scores[name].mean() == pytest.approx(rate, abs=5e-4)
        draws[name] = minimal_rates(own, counts.astype(float))
        se = score(scores[name]).se
        assert se == pytest.approx(draws[name].std(), rel=0.06)
        assert pseudo_scores(own, published=0.25).mean() == pytest.approx(0.25)
    for a, b in PAIRS:
        se = difference_of(scores[a], scores[b]).se
        assert se == pytest.approx((draws[a] - draws[b]).std(), rel=0.06)


# Table of minimum detectable effects in points, for one deviation of item differences.
SUITE = {
    0.30: {
        "mmlu_mc": 0.71,
        "popqa": 0.70,
        "bbh": 1.04,
        "math": 1.19,
        "gsm8k": 2.31,
        "truthfulqa": 2.94,
        "alpaca_eval": 2.96,
        "ifeval": 3.61,
        "humaneval": 6.56,
    },
    0.40: {
        "mmlu_mc": 0.95,
        "popqa": 0.94,
        "bbh": 1.39,
        "math": 1.58,
        "gsm8k": 3.09,
        "truthfulqa": 3.92,
        "alpaca_eval": 3.95,
        "ifeval": 4.82,
        "humaneval": 8.75,
    },
}


@pytest.mark.parametrize(
    ("sd", "q", "se", "average"), [(0.3, 0.09, 0.36, 1.02), (0.4, 0.16, 0.49, 1.36)]
)
def test_golden_table_of_what_the_suite_can_resolve(sd, q, se, average):
    plan = Plan.of(discordance=q, sd=None, effect=1)
    assert plan.sd == pytest.approx(sd)
    found = {row["name"]: 100 * row["detectable"] for row in plan.rows()}
    for name, points in SUITE[sd].items():
        assert found[name] == pytest.approx(points, abs=0.0051), name
    assert 100 * plan.average_se() == pytest.approx(se, abs=0.0051)
    assert 100 * power.multiple() * plan.average_se() == pytest.approx(average, abs=0.0051)


def test_humaneval_rows_carry_most_of_the_variance_of_the_average():
    """68% of it as two samples; being the same problems they make it 1.68 times as large."""
    plan = Plan.of(None, 0.4, 1)
    both = 2 * 0.4**2 / 164 / 121
    assert both / plan.average_se() ** 2 == pytest.approx(0.68, abs=0.005)
    assert (plan.average_se(twins=1.0) / plan.average_se()) ** 2 == pytest.approx(1.68, abs=0.005)


@pytest.mark.data("mmlu/test")
def test_effective_size_of_macro_averages():
    import csv

    sizes = []
    for path in (DATA / "mmlu" / "test").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            sizes.append(sum(1 for _ in csv.reader(file)) - 1)
    assert sum(sizes) == 14_042
    assert EFFECTIVE["mmlu_cot"] == pytest.approx(57**2 / sum(1 / n for n in sizes), abs=0.1)
    math_sizes = (1187, 474, 479, 903, 540, 871, 546)
    assert EFFECTIVE["math"] == pytest.approx(49 / sum(1 / n for n in math_sizes), abs=0.1)


# -- means and standard errors by hand -----------------------------------------------------------


def test_mean_by_hand():
    """1, 0, 0, 1, 1: mean 0.6, s^2 = 0.3, SE = sqrt(0.3 / 5) = 0.244949, t(4) = 2.776445."""
    one = score(np.array([1.0, 0, 0, 1, 1]))
    assert (one.value, one.se, one.df) == pytest.approx((0.6, 0.244949, 4), abs=1e-6)
    assert one.interval() == pytest.approx((0.6 - 0.680088, 0.6 + 0.680088), abs=1e-5)


def test_paired_by_hand():
    """d = 0.5, 0, 0.5, 0: mean 0.25, s^2 = 1/12, SE = sqrt(1/48) = 0.144338; t = 1.732051."""
    one = difference_of(np.array([1, 0.5, 0.5, 0]), np.array([0.5, 0.5, 0, 0]))
    assert (one.value, one.se) == pytest.approx((0.25, 0.144338), abs=1e-6)
    assert one.p_value() == pytest.approx(2 * stats.t.sf(math.sqrt(3), 3))


def test_paired_variance_is_that_of_the_sides_less_twice_their_covariance():
    rng = np.random.default_rng(0)
    a = rng.random(50)
    b = 0.7 * a + 0.3 * rng.random(50)
    sides = a.var(ddof=1) + b.var(ddof=1) - 2 * np.cov(a, b)[0, 1]
    assert difference_of(a, b).se == pytest.approx(math.sqrt(sides / 50))


def test_macro_by_hand():
    """Strata (1, 0, 0.5) and (0.2, 0.4): means 0.5, 0.3; s^2 = 0.25, 0.02.

    Macro 0.4 (micro 0.42); SE = sqrt(0.25 / 3 + 0.02 / 2) / 2 = 0.152753. Degrees of freedom:
    (1/12 + 1/100)^2 / ((1/12)^2 / 2 + (1/100)^2 / 1) = 2.4387.
    """
    x, strata = np.array([1.0, 0.2, 0.0, 0.4, 0.5]), ["x", "y", "x", "y", "x"]
    one = score(x, strata=strata)
    assert (one.value, one.se) == pytest.approx((0.4, 0.152753), abs=1e-6)
    assert one.df == pytest.approx((1 / 12 + 1 / 100) ** 2 / ((1 / 12) ** 2 / 2 + (1 / 100) ** 2))
    assert score(x).value == pytest.approx(0.42)


def test_clusters_by_hand():
    """Clusters (1, 1) and (0, 0, 1), mean 0.6: sums of deviations 0.8 and -0.8.

    sqrt(0.64 + 0.64) / 5 = 0.226274; times sqrt(2 / 1) = 0.32, one degree of freedom.
    """
    x, clusters = np.array([1.0, 1, 0, 0, 1]), ["p", "p", "q", "q", "q"]
    one = score(x, clusters=clusters)
    assert (one.se, one.df) == pytest.approx((0.32, 1))


def test_clusters_of_one_item_change_nothing():
    x = np.random.default_rng(1).random(30)
    alone = score(x)
    one = score(x, clusters=list(range(30)))
    assert (one.value, one.se, one.df) == pytest.approx((alone.value, alone.se, alone.df))


def test_copies_of_every_item_in_a_cluster_add_no_information():
    """Each item four times, clustered: the standard error of the 20 items, not half of it."""
    x = np.random.default_rng(2).random(20)
    one = score(np.repeat(x, 4), clusters=[i for i in range(20) for _ in range(4)])
    assert one.se == pytest.approx(score(x).se)
    assert score(np.repeat(x, 4)).se < 0.55 * one.se


def test_clusters_within_strata():
    """A label in two strata stands for two clusters; each stratum has its own mean and factor."""
    rng = np.random.default_rng(3)
    x, strata = rng.random(24), ["a"] * 10 + ["b"] * 14
    clusters = [i // 2 for i in range(10)] + [i // 2 for i in range(14)]
    one = score(x, strata, clusters)
    parts = [
        score(x[:10], clusters=clusters[:10]).se ** 2,
        score(x[10:], clusters=clusters[10:]).se ** 2,
    ]
    assert one.se == pytest.approx(math.sqrt(sum(parts)) / 2)


def test_batches_are_what_single_calls_are():
    rng = np.random.default_rng(4)
    strata, clusters = rng.integers(0, 4, 60).tolist(), rng.integers(0, 15, 60).tolist()
    x = rng.random((2, 3, 60))
    sampling = Sampling(60, strata=strata, clusters=clusters)
    batch = sampling.estimate(x)
    for i in np.ndindex(2, 3):
        one = sampling.estimate(x[i])
        assert (one.value, one.se, one.df) == pytest.approx(
            (batch.value[i], batch.se[i], batch.df[i])
        )


def test_strata_of_one_item_are_collapsed():
    """Singles 0.2, 0.6 and a stratum (0, 1), weights 1/3.

    The singles' contributions 0.2/3 and 0.6/3 spread by s^2 = 0.4^2 / 2 / 9, twice that for their
    sum: 0.16 / 9; the stratum 0.5 / 2 / 9.
    """
    sampling = Sampling(4, strata=["x", "y", "z", "z"])
    variance, _ = sampling.variance(np.array([0.2, 0.6, 0.0, 1.0]))
    assert variance == pytest.approx((0.16 + 0.25) / 9)


def test_one_stratum_of_one_item_takes_the_spread_of_the_others():
    """(0, 1, 0, 1): s^2 = 1/3, of the mean 1/12; the single has 1/3 for itself; weights 1/2."""
    sampling = Sampling(5, strata=["x", "x", "x", "x", "y"])
    variance, _ = sampling.variance(np.array([0.0, 1, 0, 1, 0.7]))
    assert variance == pytest.approx((1 / 12 + 1 / 3) / 4)


def test_one_item_tells_nothing():
    one = score(np.array([0.7]))
    assert one.value == 0.7
    assert math.isnan(one.se)
    assert math.isnan(one.p_value())


def test_p_of_no_spread():
    assert difference_of(np.ones(5), np.ones(5)).p_value() == 1
    assert difference_of(np.ones(5), np.zeros(5)).p_value() == 0


def test_p_is_that_of_scipy():
    rng = np.random.default_rng(5)
    a, b = rng.random(40), rng.random(40)
    assert difference_of(a, b).p_value() == pytest.approx(stats.ttest_rel(a, b).pvalue)
    ends = stats.ttest_rel(a, b).confidence_interval()
    assert difference_of(a, b).interval() == pytest.approx((ends.low, ends.high))


def test_clustered_error_is_that_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(6)
    x, clusters = rng.random(200), rng.integers(0, 25, 200)
    fit = sm.OLS(x, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert score(x, clusters=clusters.tolist()).se == pytest.approx(fit.bse[0])


def test_labels_and_items_must_fit():
    with pytest.raises(ValueError, match="3 labels for 4 items"):
        Sampling(4, strata=["a", "b", "c"])
    with pytest.raises(ValueError, match="5 values for 4 items"):
        Sampling(4).mean(np.ones(5))
    with pytest.raises(ValueError, match="no items"):
        Sampling(0)
    with pytest.raises(ValueError, match="2 strata"):
        Sampling(2, strata=["a", "b"], weights=[1.0])


def test_correlation_of_a_constant_is_none():
    assert correlation_of(np.ones(4), np.arange(4.0)) is None


# -- several benchmarks --------------------------------------------------------------------------


def test_together_is_the_weighted_mean_and_the_root_of_the_sum_of_squares():
    rng = np.random.default_rng(7)
    x, y, z = rng.random(30), rng.random(50), rng.random(40)
    strata, clusters = rng.integers(0, 3, 50).tolist(), rng.integers(0, 12, 40).tolist()
    parts = [Sampling(30), Sampling(50, strata=strata), Sampling(40, clusters=clusters)]
    whole = Sampling.together([(part, 1 / 3) for part in parts])
    one = whole.estimate(np.concatenate([x, y, z]))
    alone = [part.estimate(v) for part, v in zip(parts, (x, y, z), strict=True)]
    assert one.value == pytest.approx(np.mean([e.value for e in alone]))
    assert one.se == pytest.approx(math.sqrt(sum(e.se**2 for e in alone)) / 3)


def test_together_keeps_the_weights_of_strata_whatever_their_order():
    x = np.array([0.0, 1.0, 1.0])
    part = Sampling(3, strata=["b", "a", "a"], weights=[0.75, 0.25])
    assert part.mean(x) == pytest.approx(0.25)
    assert Sampling.together([(part, 1.0)]).mean(x) == pytest.approx(0.25)


def test_joint_of_the_same_problems_is_the_mean_of_both():
    ids, x = joint([(["p", "q"], np.array([[1.0, 0.0]])), (["q", "p"], np.array([[0.5, 0.0]]))])
    assert ids == ["p", "q"]
    assert x == pytest.approx(np.array([[0.5, 0.25]]))


def test_joint_of_problems_that_overlap():
    """Means 0.5 and 0.4; p is in the first alone, r in the second: N = 3, n = 2 each.

    p: 0.45 + 3/4 * 0.5 = 0.825; q: 0.45 + 3/4 * (-0.5 + 0.2) = 0.225; r: 0.45 - 3/4 * 0.2 = 0.3.
    """
    ids, x = joint([(["p", "q"], np.array([[1.0, 0.0]])), (["q", "r"], np.array([[0.6, 0.2]]))])
    assert ids == ["p", "q", "r"]
    assert x == pytest.approx(np.array([[0.825, 0.225, 0.3]]))
    assert x.mean() == pytest.approx((0.5 + 0.4) / 2)


def test_joint_of_different_problems_has_the_error_of_independent_ones():
    rng = np.random.default_rng(8)
    x, y = rng.random((1, 400)), rng.random((1, 300))
    _, both = joint([([f"x{i}" for i in range(400)], x), ([f"y{i}" for i in range(300)], y)])
    apart = math.hypot(score(x[0]).se, score(y[0]).se) / 2
    assert score(both[0]).se == pytest.approx(apart, rel=0.005)


# -- the bootstrap -------------------------------------------------------------------------------


def test_two_items_have_three_means():
    """0 and 1 drawn twice: 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, pulled out by sqrt(2)."""
    draws = bootstrap.resample(np.array([[0.0], [1.0]]), Sampling(2), draws=20_000)[:, 0]
    values, counts = np.unique(draws.round(9), return_counts=True)
    half = math.sqrt(2) / 2
    assert values == pytest.approx([0.5 - half, 0.5, 0.5 + half])
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


@pytest.mark.parametrize("kind", ["plain", "strata", "clusters", "strata and clusters"])
def test_draws_spread_as_the_formula_says(kind):
    rng = np.random.default_rng(9)
    labels = {}
    if "strata" in kind:
        labels["strata"] = np.repeat([0, 1, 2], [8, 20, 60]).tolist()
    if "clusters" in kind:
        labels["clusters"] = [i // 2 for i in range(88)]  # clusters of the same size
    x, sampling = rng.random(88), Sampling(88, **labels)
    draws = bootstrap.resample(x[:, None], sampling, draws=20_000)[:, 0]
    one = sampling.estimate(x)
    assert draws.mean() == pytest.approx(one.value, abs=0.02 * one.se + 1e-3)
    assert draws.std() == pytest.approx(one.se, rel=0.03)


def test_draws_of_equal_items_are_those_of_the_plain_way():
    """Distinct values drawn by their number, against indices drawn one by one: one distribution."""
    x = np.repeat([-1.0, 0.0, 1.0], [5, 30, 9])
    ours = bootstrap.resample(x[:, None], Sampling(44), draws=20_000)[:, 0]
    rng = np.random.default_rng(10)
    plain = x[rng.integers(0, 44, (20_000, 44))].mean(axis=1)
    plain = x.mean() + math.sqrt(44 / 43) * (plain - x.mean())
    assert ours.std() == pytest.approx(plain.std(), rel=0.02)
    assert stats.ks_2samp(ours.round(9), plain.round(9)).statistic < 0.02


def test_columns_are_resampled_together():
    x = np.random.default_rng(11).random(50)
    draws = bootstrap.resample(np.column_stack([x, 3 * x, 1 - x]), Sampling(50), draws=500)
    assert draws[:, 1] == pytest.approx(3 * draws[:, 0])
    assert draws[:, 2] == pytest.approx(1 - draws[:, 0])


def test_draws_are_those_of_their_seed_and_of_no_chunk(monkeypatch):
    x = np.random.default_rng(12).random((70, 1))
    one = bootstrap.resample(x, Sampling(70), draws=300, seed=1)
    assert (one == bootstrap.resample(x, Sampling(70), draws=300, seed=1)).all()
    assert (one != bootstrap.resample(x, Sampling(70), draws=300, seed=2)).any()
    monkeypatch.setattr(bootstrap, "CELLS", 1_000)
    assert one == pytest.approx(bootstrap.resample(x, Sampling(70), draws=300, seed=1))


def test_a_stratum_of_one_unit_is_refused():
    """Drawn again and again it would look as if it had no error."""
    with pytest.raises(ValueError, match="one unit"):
        bootstrap.resample(np.ones((3, 1)), Sampling(3, strata=["a", "a", "b"]))
    with pytest.raises(ValueError, match="one unit"):
        bootstrap.resample(np.ones((3, 1)), Sampling(3, clusters=["a", "a", "a"]))


def test_p_of_draws_touches_the_interval():
    """3 of 999 draws at or below zero: 2 * 4 / 1000; none: 2 / 1000; all on zero: 1."""
    draws = np.concatenate([np.full(3, -0.1), np.full(996, 0.2)])
    assert bootstrap.p_value(draws) == pytest.approx(0.008)
    assert bootstrap.p_value(draws + 1) == pytest.approx(0.002)
    assert bootstrap.p_value(-draws) == pytest.approx(0.008)
    assert bootstrap.p_value(np.zeros(999)) == 1


# -- McNemar -------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    """1 against 5: 2 (1 + 6) / 64 = 0.21875; 0 against 5: 2 / 32; 3 against 3: 1; none: 1."""
    assert mcnemar.p_value(1, 5) == 0.21875
    assert mcnemar.p_value(0, 5) == 0.0625
    assert mcnemar.p_value(3, 3) == 1
    assert mcnemar.p_value(0, 0) == 1


@settings(max_examples=60)
@given(st.integers(0, 90), st.integers(0, 90))
def test_mcnemar_is_the_binomial_test(b, c):
    exact = Fraction(2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)), 2 ** (b + c))
    assert mcnemar.p_value(b, c) == pytest.approx(float(min(exact, Fraction(1))), rel=1e-12)
    if b + c:
        assert mcnemar.p_value(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    assert mcnemar.p_value(b, c) == mcnemar.p_value(c, b)


def test_mcnemar_is_that_of_statsmodels():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[50, 12], [25, 40]]
    assert mcnemar.p_value(12, 25) == pytest.approx(contingency.mcnemar(table, exact=True).pvalue)


def test_mcnemar_beyond_64_bits_and_beyond_floats():
    """Sizes of MMLU; powers of two there are no floats, let alone 64-bit integers."""
    assert mcnemar.p_value(40, 60) == pytest.approx(stats.binomtest(40, 100).pvalue)
    assert mcnemar.p_value(3000, 3200) == pytest.approx(stats.binomtest(3000, 6200).pvalue)
    assert mcnemar.p_value(7000, 7000) == 1
    assert mcnemar.p_value(0, 1050) == pytest.approx(2.0**-1049)
    assert mcnemar.p_value(0, 5000) == 0


def test_discordant_counts():
    a, b = np.array([1, 1, 0, 0, 1, 0.0]), np.array([1, 0, 1, 0, 0, 0.0])
    assert mcnemar.discordant(a, b) == (2, 1)
    assert Paired("x", a[None], b[None], Sampling(6)).discordant == (2, 1)
    assert Paired("x", a[None], b[None] / 2, Sampling(6)).discordant is None


def test_score_interval_of_no_discordant_item_by_hand():
    """(0 - n d)^2 = z^2 n d (1 - d): d = z^2 / (n + z^2) = 3.8415 / 103.8415 for 100 items."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert mcnemar.score_interval(0, 0, 100) == pytest.approx(
        (-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9
    )
    assert mcnemar.interval(0, 0, 100) == mcnemar.score_interval(0, 0, 100)


@settings(max_examples=40)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_score_interval_by_the_likelihood_itself(b, c, rest):
    """At each end the test statistic, with q found by a search for the maximum, is -+z."""
    n = b + c + rest
    if n == 0:
        return
    z = stats.norm.ppf(0.975)
    for end, sign in zip(mcnemar.score_interval(b, c, n), (1, -1), strict=True):
        if abs(end) > 1 - 1e-6:
            continue
        # q21 = q, q12 = q + end, the rest concordant: log-likelihood over all q that are allowed
        q = np.linspace(max(0.0, -end), (1 - end) / 2, 200_001)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [
                np.where(k > 0, k * np.log(share), 0.0)
                for k, share in ((b, q + end), (c, q), (rest, 1 - 2 * q - end))
            ]
            best = q[np.nanargmax(np.sum(parts, axis=0))]
        variance = n * (2 * best + end - end**2)
        if variance > 1e-6:
            assert (b - c - n * end) / math.sqrt(variance) == pytest.approx(sign * z, abs=0.02)


@settings(max_examples=150)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_interval_and_exact_test_say_the_same_about_zero(b, c, rest):
    n = b + c + rest
    if n == 0:
        return
    low, high = mcnemar.interval(b, c, n)
    assert -1 <= low <= (b - c) / n + 1e-9 and (b - c) / n - 1e-9 <= high <= 1
    assert (low <= 0 <= high) == (mcnemar.p_value(b, c) >= 0.05)
    swapped = mcnemar.interval(c, b, n)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-6)


# -- Holm, power, samples ------------------------------------------------------------------------


def test_holm_by_hand():
    """0.01, 0.04, 0.03, 0.005 sorted: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, then

    0.04 * 1, which may not be below the one before: 0.06. In the order given: 0.03, 0.06, 0.06,
    0.02.
    """
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert len(holm([])) == 0


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=14))
def test_holm_decides_as_the_step_down_procedure(p):
    alpha = 0.05
    order, rejected = np.argsort(p, kind="stable"), set()
    for i, k in enumerate(order):
        if p[k] >= alpha / (len(p) - i):
            break
        rejected.add(k)
    found = {k for k, value in enumerate(holm(p)) if value < alpha}
    borders = [p[k] * (len(p) - i) for i, k in enumerate(order)]
    if not any(math.isclose(border, alpha) for border in borders):
        assert found == rejected


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(14).random(11) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_power_by_hand():
    """1.959964 + 0.841621 = 2.801585 standard errors; sd 0.4, n 100: 0.112063."""
    assert power.multiple() == pytest.approx(2.801585, abs=1e-6)
    assert power.detectable(0.4, 100) == pytest.approx(0.112063, abs=1e-6)
    assert power.multiple(df=4) == pytest.approx(2.776445 + 0.940965, abs=1e-6)


def test_needed_is_the_least_number_that_detects():
    n = power.needed(0.4, 0.01)
    assert n == 12_559  # (2.801585 * 0.4 / 0.01)^2 = 12,558.2
    assert power.detectable(0.4, n) <= 0.01 < power.detectable(0.4, n - 1)


def test_problems_are_the_unit_not_samples():
    """20 samples of a problem are no 20 items: the error is that of 30 problems."""
    rng = np.random.default_rng(15)
    chance = rng.beta(0.5, 0.5, 30)
    correct = rng.binomial(20, chance)
    one = score(correct / 20)
    assert one.se == pytest.approx(np.std(correct / 20, ddof=1) / math.sqrt(30))
    samples = np.array([s for c in correct for s in [1.0] * c + [0.0] * (20 - c)])
    assert score(samples).se < 0.4 * one.se
    clusters = np.repeat(np.arange(30), 20).tolist()
    assert score(samples, clusters=clusters).se == pytest.approx(one.se)


# -- training seeds ------------------------------------------------------------------------------


def test_one_run_an_arm_is_the_paired_difference():
    rng = np.random.default_rng(16)
    a, b = rng.random((1, 40)), rng.random((1, 40))
    one, plain = seeds.difference(a, b, Sampling(40)), difference_of(a[0], b[0])
    assert (one.value, one.se, one.df) == pytest.approx((plain.value, plain.se, plain.df))
    assert (one.seeds_a, one.seeds_b) == (0, 0)


def test_seeds_by_hand():
    """Runs of A (1, 0, 0, 1) and (1, 1, 0, 0) + 0.5 / 0, B all 0, four items.

    A: run 0 (1.5, 0.5, 0.5, 1.5), mean 1; run 1 (1, 1, 0, 0), mean 0.5. Items of the mean run
    (1.25, 0.75, 0.25, 0.75): mean 0.75, s^2 = 1/6, I = 1/24. Spread of run means: 0.125, M = 1/16.
    Interactions +-(0.25, -0.25, 0.25, 0.75) around the item means, less their mean 0.25:
    (0, -0.5, 0, 0.5), squares 0.5, twice, over (2 - 1)(4 - 1): 1/3; R = 1/3 / 8 = 1/24.
    """
    a = np.array([[1.5, 0.5, 0.5, 1.5], [1.0, 1.0, 0.0, 0.0]])
    one = seeds.difference(a, np.zeros((1, 4)), Sampling(4))
    assert one.value == pytest.approx(0.75)
    assert one.items == pytest.approx(1 / 24)
    assert one.seeds_a == pytest.approx(1 / 16 - 1 / 24)
    assert one.seeds_b == 0
    assert one.se**2 == pytest.approx(1 / 16)
    below = (1 / 24) ** 2 / 3 + (1 / 16) ** 2 / 1 + (1 / 24) ** 2 / 3
    assert one.df == pytest.approx((1 / 16) ** 2 / below)


def test_equal_runs_add_no_seed_variance():
    rng = np.random.default_rng(17)
    a, b = rng.random((1, 30)), rng.random((1, 30))
    one = seeds.difference(np.repeat(a, 3, axis=0), np.repeat(b, 2, axis=0), Sampling(30))
    assert one.se == pytest.approx(difference_of(a[0], b[0]).se)


def test_seed_variance_is_never_negative():
    """Runs that differ item by item and agree in the mean: M = 0, below R."""
    a = np.array([[1.0, 0, 1, 0], [0.0, 1, 0, 1]])
    one = seeds.difference(a, np.array([[0.2, 0.1, 0.4, 0.3]]), Sampling(4))
    assert one.seeds_a == 0
    assert one.se == pytest.approx(math.sqrt(one.items))


def test_variance_is_unbiased():
    """Mean of the estimated variance over 20,000 data sets, where it is not cut off at zero."""
    rng = np.random.default_rng(18)
    n, runs, repetitions = 20, (3, 2), 20_000
    sides = []
    for count in runs:
        items = rng.normal(size=(repetitions, 1, n)) * 0.4
        own = rng.normal(size=(repetitions, count, 1)) * 1.0
        sides.append(items + own + rng.normal(size=(repetitions, count, n)) * 0.5)
    one = seeds.difference(*sides, Sampling(n))
    truth = 2 * 0.16 / n + 1 / 3 + 1 / 2 + 0.25 / n * (1 / 3 + 1 / 2)
    assert np.mean(one.se**2) == pytest.approx(truth, rel=0.02)
    assert np.var(one.value) == pytest.approx(truth, rel=0.03)


def test_seeds_of_an_average_are_taken_over_all_benchmarks():
    """A run that is better on one benchmark and worse on the other as much is no spread at all."""
    a = np.array([[0.9, 0.7, 0.1, 0.3], [0.5, 0.3, 0.5, 0.7]])
    whole = Sampling.together([(Sampling(2), 0.5), (Sampling(2), 0.5)])
    assert whole.mean(a) == pytest.approx([0.5, 0.5])
    assert seeds.difference(a, np.zeros((1, 4)), whole).seeds_a == 0
    assert seeds.difference(a[:, :2], np.zeros((1, 2)), Sampling(2)).seeds_a > 0.03


def test_an_estimate_knows_its_quantiles():
    one = Estimate(1.0, 0.5, 10)
    assert one.interval(0.9) == pytest.approx((1 - 0.5 * 1.812461, 1 + 0.5 * 1.812461), abs=1e-6)
