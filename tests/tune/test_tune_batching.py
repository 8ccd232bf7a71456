"""Protects the planner of training steps: every pair once, ranks in lockstep, budgets kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deltalearn.tune.batching import plan_step, plan_tokens

lengths = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(1, 60), min_size=1, max_size=2).map(tuple)),
    min_size=1,
    max_size=40,
)
kinds = st.sampled_from(["shared", "packed", "padded"])


@given(lengths=lengths, budget=st.integers(1, 400), ranks=st.integers(1, 4), kind=kinds)
def test_every_pair_once_and_ranks_in_lockstep(lengths, budget, ranks, kind):
    plan = plan_step(lengths, budget=budget, ranks=ranks, kind=kind)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1, "the same number of forwards on every rank"
    placed = [i for rank in plan for micro in rank for i in micro]
    assert sorted(placed) == list(range(len(lengths)))
    for micro in (micro for rank in plan for micro in rank if len(micro) > 1):
        computed, useful = plan_tokens(lengths, [[micro]], kind)
        assert useful <= computed <= budget
    assert plan == plan_step(lengths, budget=budget, ranks=ranks, kind=kind)


@given(lengths=lengths, budget=st.integers(120, 400), kind=st.sampled_from(["shared", "packed"]))
def test_few_forwards(lengths, budget, kind):
    """Never more than twice the least possible, plus one."""
    plan = plan_step(lengths, budget=budget, kind=kind)
    computed, useful = plan_tokens(lengths, plan, kind)
    assert computed == useful, "nothing is padded"
    largest = max(plan_tokens(lengths, [[[i]]], kind)[0] for i in range(len(lengths)))
    if largest <= budget:
        assert len(plan[0]) <= 2 * useful / budget + 1


def test_by_hand():
    """Costs 9, 6, 5 and 4 make 24, but no two forwards of 12: so 9, 5 + 4 and 6."""
    pairs = [(3, (4, 2)), (2, (2, 2)), (1, (2, 2)), (2, (1, 1))]
    assert plan_step(pairs, budget=12) == [[[0], [2, 3], [1]]]
    assert plan_step(pairs, budget=24) == [[[0, 1, 2, 3]]]
    assert plan_step(pairs, budget=1) == [[[0], [1], [2], [3]]]


def test_two_ranks_share_the_load():
    pairs = [(10, (10, 10)), (5, (5, 5)), (5, (5, 5)), (1, (1, 1))]
    first, second = plan_step(pairs, budget=100, ranks=2)
    assert first == [[0, 3]]  # 33 tokens
    assert second == [[1, 2]]  # 30 tokens


def test_more_ranks_than_pairs_leaves_empty_forwards():
    assert plan_step([(2, (1, 1))], budget=10, ranks=3) == [[[0]], [[]], [[]]]


def test_padded_tokens_by_hand():
    """Two pairs: rows of 3 + 4 = 7 tokens, four of them; 4 + 2 + 2 + 2 + ... are padding."""
    pairs = [(3, (4, 2)), (2, (2, 2))]
    plan = plan_step(pairs, budget=100, kind="padded")
    assert plan_tokens(pairs, plan, "padded") == (28, 7 + 5 + 4 + 4)
