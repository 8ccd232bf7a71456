"""Protects what "95%" means: how often intervals of `evaluate.paired` hold the truth (simulations).

Every case draws thousands of data sets whose truth is known and counts the intervals that hold it.
With R data sets the count has a standard error of sqrt(0.95 * 0.05 / R): 0.34 points at 4,000, so
that the bounds 93% to 97% are six standard errors away from an honest 95%, and an interval that is
a tenth too narrow (92.2%) fails. Seeds are fixed.

Known limits are tested as what they are, so that nobody takes them for 95%: five clusters of uneven
size, training and very uneven size, training
seeds on one side only with two or three runs, HumanEval and HumanEval+ as if they
were two samples. Each such test says in its docstring how large the shortfall is.
"""

from __future__ import annotations

import numpy as np
import pytest

from deltalearn.evaluate.tulu3.humaneval.grader import pass_at_k
from deltalearn.stats import bootstrap, mcnemar, power, seeds
from deltalearn.stats.joint import joint
from deltalearn.stats.sampling import Sampling

pytestmark = pytest.mark.slow

R = 4_000
ALPACA_SOURCES = (129, 156, 188, 252, 80)


def honest(share: float) -> bool:
    return 0.93 <= share <= 0.97


def covered(interval, truth) -> float:
    """The share of intervals (arrays of low and high ends) that hold the truth."""
    low, high = interval
    return float(np.mean((low <= truth) & (truth <= high)))


def binary_pairs(rng, shape, p, q):
    """0/1 scores of two models: P(a) = p, P(b) = p - 0.02, discordant share q."""
    only_a, only_b = (q + 0.02) / 2, (q - 0.02) / 2
    u = rng.random(shape)
    a = u < p
    b = np.where(a, u >= only_a, u < p + only_b)
    return a.astype(float), b.astype(float)


# -- one score, one difference -------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(1319, 0.76), (541, 0.73), (164, 0.85), (60, 0.6)])
def test_mean_of_zero_one_scores(n, p):
    scores = (np.random.default_rng(n).random((R, n)) < p).astype(float)
    assert honest(covered(Sampling(n).estimate(scores).interval(), p))


def test_mean_of_skewed_scores():
    """F1: a lump at 0, one at 1, something between."""
    rng = np.random.default_rng(1)
    kind, between = rng.random((R, 300)), rng.beta(2, 3, (R, 300))
    scores = np.where(kind < 0.3, 0.0, np.where(kind < 0.8, 1.0, between))
    estimate = Sampling(300).estimate(scores)
    assert honest(covered(estimate.interval(), 0.5 + 0.2 * 0.4))


@pytest.mark.parametrize(("n", "q"), [(1319, 0.16), (541, 0.16), (541, 0.09), (164, 0.16)])
def test_paired_difference_of_zero_one_scores(n, q):
    a, b = binary_pairs(np.random.default_rng(n), (R, n), 0.7, q)
    assert honest(covered(Sampling(n).estimate(a - b).interval(), 0.02))


@pytest.mark.parametrize(("n", "q"), [(541, 0.16), (164, 0.09), (100, 0.06), (60, 0.10)])
def test_interval_that_agrees_with_mcnemar(n, q):
    """96% to 98%: not below 95%, and above it with few discordant items, like the exact test."""
    a, b = binary_pairs(np.random.default_rng(n), (R, n), 0.7, q)
    counts = np.stack([(a > b).sum(axis=1), (b > a).sum(axis=1)], axis=1)
    distinct, of = np.unique(counts, axis=0, return_inverse=True)
    ends = np.array([mcnemar.interval(int(x), int(y), n) for x, y in distinct])[of]
    assert 0.94 <= covered(ends.T, 0.02) <= 0.99


def test_percentile_interval_of_paired_differences():
    """All data sets are resampled by the same 2,000 draws, which each is entitled to."""
    rng = np.random.default_rng(2)
    n = 164
    hard = rng.normal(size=(R, n))
    a = 1 / (1 + np.exp(-2 * (hard + 0.3 + 0.5 * rng.normal(size=(R, n)))))
    b = 1 / (1 + np.exp(-2 * (hard + 0.5 * rng.normal(size=(R, n)))))
    truth = float(np.mean(a - b))  # of 656,000 items
    sampling = Sampling(n)
    draws = bootstrap.resample((a - b).T, sampling, draws=2_000)
    assert honest(covered(np.percentile(draws, [2.5, 97.5], axis=0), truth))


def test_rejects_no_difference_one_time_in_twenty_and_a_detectable_one_four_in_five():
    """The size of the t test is 5%, its power at the minimum detectable effect 80%."""
    n, q = 541, 0.16
    rng = np.random.default_rng(3)
    signs = rng.choice([-1.0, 0.0, 1.0], p=[q / 2, 1 - q, q / 2], size=(R, n))
    assert np.mean(Sampling(n).estimate(signs).p_value() < 0.05) == pytest.approx(0.05, abs=0.012)
    effect = power.detectable(np.sqrt(q - 0.0485**2), n)
    shifted = [(q - effect) / 2, 1 - q, (q + effect) / 2]
    signs = rng.choice([-1.0, 0.0, 1.0], p=shifted, size=(R, n))
    assert np.mean(Sampling(n).estimate(signs).p_value() < 0.05) == pytest.approx(0.80, abs=0.02)


# -- strata, samples, clusters -------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(124, 97, 82, 62, 56, 41, 38), tuple(range(10, 67))], ids=["MATH 500", "57 subjects"]
)
def test_macro_average_of_differences(sizes):
    """Strata of uneven size with gains and losses of their own; t and stratified bootstrap."""
    rng = np.random.default_rng(len(sizes))
    strata = np.repeat(np.arange(len(sizes)), sizes)
    q, gain = np.linspace(0.05, 0.3, len(sizes)), np.linspace(-0.04, 0.1, len(sizes))
    up = ((q + gain) / 2)[strata]
    down = ((q - gain) / 2)[strata]
    u = rng.random((R, len(strata)))
    d = (u < up).astype(float) - (u > 1 - down)
    sampling = Sampling(len(strata), strata=strata.tolist())
    assert honest(covered(sampling.estimate(d).interval(), gain.mean()))
    draws = bootstrap.resample(d[: R // 2].T, sampling, draws=1_000)
    assert honest(covered(np.percentile(draws, [2.5, 97.5], axis=0), gain.mean()))


def test_pass_at_10_of_20_samples():
    """The problem is the unit; truth: the mean of 1 - (1 - p)^10 over problems' p."""
    rng = np.random.default_rng(4)
    n = 164
    chances = rng.beta(0.5, 0.5, (R, n))
    better = chances**0.7
    rates = np.array([pass_at_k(20, c, 10) for c in range(21)])
    scores = [rates[rng.binomial(20, p)] for p in (better, chances)]
    p = rng.beta(0.5, 0.5, 2_000_000)
    truths = [float(np.mean(1 - (1 - x) ** 10)) for x in (p**0.7, p)]
    sampling = Sampling(n)
    for own, truth in zip(scores, truths, strict=True):
        assert honest(covered(sampling.estimate(own).interval(), truth))
    difference = sampling.estimate(scores[0] - scores[1])
    assert honest(covered(difference.interval(), truths[0] - truths[1]))


def clustered(rng, sizes, between, within=0.4, repetitions=R):
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    shared = rng.normal(size=(repetitions, len(sizes))) * between
    d = shared[:, clusters] + rng.normal(size=(repetitions, len(clusters))) * within
    return d, clusters.tolist()


@pytest.mark.parametrize("groups", [20, 60, 300])
def test_clustered_differences(groups):
    """Passages with 1 to 20 questions each; without the clusters it is 70%."""
    rng = np.random.default_rng(groups)
    d, clusters = clustered(rng, rng.integers(1, 21, groups), between=0.2)
    sampling = Sampling(d.shape[1], clusters=clusters)
    assert honest(covered(sampling.estimate(d).interval(), 0.0))
    assert covered(Sampling(d.shape[1]).estimate(d).interval(), 0.0) < 0.90


def test_cluster_bootstrap_with_many_clusters():
    rng = np.random.default_rng(5)
    d, clusters = clustered(rng, rng.integers(1, 21, 100), between=0.2)
    draws = bootstrap.resample(d.T, Sampling(d.shape[1], clusters=clusters), draws=2_000)
    assert honest(covered(np.percentile(draws, [2.5, 97.5], axis=0), 0.0))


def test_five_clusters_of_equal_size():
    d, clusters = clustered(np.random.default_rng(6), [160] * 5, between=0.05)
    assert honest(covered(Sampling(800, clusters=clusters).estimate(d).interval(), 0.0))


def test_limit_five_clusters_of_uneven_size():
    """AlpacaEval's five sources: 93.5% to 94.5% by t, and 87% by a bootstrap of five things."""
    d, clusters = clustered(np.random.default_rng(7), ALPACA_SOURCES, between=0.05)
    sampling = Sampling(805, clusters=clusters)
    assert 0.92 <= covered(sampling.estimate(d).interval(), 0.0) <= 0.955
    draws = bootstrap.resample(d.T, sampling, draws=2_000)
    assert covered(np.percentile(draws, [2.5, 97.5], axis=0), 0.0) < 0.88


def test_limit_few_clusters_two_of_which_hold_nearly_all():
    """400, 300, 50, 30 and 25 items: 80% to 83%. G - 1 counts five clusters where two decide."""
    d, clusters = clustered(np.random.default_rng(12), (400, 300, 50, 30, 25), between=0.1)
    assert 0.77 <= covered(Sampling(805, clusters=clusters).estimate(d).interval(), 0.0) <= 0.86


# -- training seeds ------------------------------------------------------------------------------


def arms(rng, runs, seed_sd, n=100, item_sd=0.35, noise=0.3, repetitions=R):
    """Differences of truth 0: items (of both arms), runs, and runs times items."""
    result = []
    for count in runs:
        items = rng.normal(size=(repetitions, 1, n)) * item_sd
        own = rng.normal(size=(repetitions, count, 1)) * (seed_sd if count > 1 else 0)
        result.append(items + own + rng.normal(size=(repetitions, count, n)) * noise)
    return result


@pytest.mark.parametrize("seed_sd", [0.0, 0.02, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("runs", [(10, 10), (5, 5), (5, 3), (3, 3)])
def test_training_seeds_as_a_random_effect(runs, seed_sd):
    """The items alone have a standard error of 0.05 here; seeds from none to ten times that."""
    a, b = arms(np.random.default_rng([*runs, int(100 * seed_sd)]), runs, seed_sd)
    share = covered(seeds.difference(a, b, Sampling(100)).interval(), 0.0)
    assert honest(share)


def test_ignoring_seeds_is_no_95_percent():
    """What one gets from the items alone, three runs an arm: 73% for a seed sd of 10 points."""
    a, b = arms(np.random.default_rng(8), (3, 3), 0.1)
    d = a.mean(axis=1) - b.mean(axis=1)
    assert covered(Sampling(100).estimate(d).interval(), 0.0) < 0.80


@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 0.1, 0.2, 0.5])
def test_limit_two_runs_an_arm(seed_sd):
    """One degree of freedom an arm, and still 93% to 97%, for arms whose seeds spread alike."""
    a, b = arms(np.random.default_rng([9, int(100 * seed_sd)]), (2, 2), seed_sd)
    share = covered(seeds.difference(a, b, Sampling(100)).interval(), 0.0)
    assert 0.92 <= share <= 0.975


@pytest.mark.parametrize(("runs", "least"), [(2, 0.86), (3, 0.91), (5, 0.93)])
def test_limit_seeds_of_one_arm_against_an_untrained_model(runs, least):
    """Seeds vary on one side: at worst 87% with two runs, 92% with three, 94% with five."""
    shares = []
    for seed_sd in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5):
        a, b = arms(np.random.default_rng([10, runs, int(100 * seed_sd)]), (runs, 1), seed_sd)
        shares.append(covered(seeds.difference(a, b, Sampling(100)).interval(), 0.0))
    assert least <= min(shares)
    assert min(shares) < (0.93 if runs < 5 else 0.95)
    assert max(shares) <= 0.97


# -- averages over benchmarks --------------------------------------------------------------------


def suite(rng, repetitions=R):
    """Four benchmarks, (repetitions, n) differences: macro, plain, clustered, and twins."""
    strata = np.repeat(np.arange(7), (20, 30, 40, 50, 60, 70, 80))
    gain = np.linspace(-0.05, 0.05, 7)
    macro = gain[strata] + rng.normal(size=(repetitions, len(strata))) * 0.4
    plain = rng.normal(size=(repetitions, 200)) * 0.4
    passages, clusters = clustered(rng, [5] * 40, 0.2, repetitions=repetitions)
    hard = rng.normal(size=(repetitions, 82)) * 0.4
    twins = [hard + rng.normal(size=hard.shape) * 0.15 for _ in range(2)]
    samplings = [Sampling(len(strata), strata=strata.tolist()), Sampling(200)]
    samplings.append(Sampling(200, clusters=clusters))
    return [macro, plain, passages], samplings, twins


def test_average_over_benchmarks_some_of_which_share_problems():
    """By t and by the bootstrap of all together; taking the twins for two samples gives 88%."""
    parts, samplings, twins = suite(np.random.default_rng(11))
    ids = [str(i) for i in range(82)]
    joined = joint([(ids, twin) for twin in twins])[1]
    blocks = [*zip(parts, samplings, [1 / 5] * 3, strict=True), (joined, Sampling(82), 2 / 5)]
    whole = Sampling.together([(s, w) for _, s, w in blocks])
    estimate = whole.estimate(np.concatenate([d for d, _, _ in blocks], axis=1))
    assert honest(covered(estimate.interval(), 0.0))
    draws = sum(
        w * bootstrap.resample(d.T, s, draws=2_000, seed=i) for i, (d, s, w) in enumerate(blocks)
    )
    assert honest(covered(np.percentile(draws, [2.5, 97.5], axis=0), 0.0))
    apart = [*zip(parts, samplings, strict=True), *((twin, Sampling(82)) for twin in twins)]
    naive = Sampling.together([(s, 1 / 5) for _, s in apart])
    estimate = naive.estimate(np.concatenate([d for d, _ in apart], axis=1))
    assert covered(estimate.interval(), 0.0) < 0.90
