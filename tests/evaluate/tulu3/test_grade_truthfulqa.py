"""Protects MC2, the share of probability of the true choices, and its numerical range.

Hand-worked shares, the choices of all 817 real questions, and agreement with lm_eval wherever
lm_eval's plain exp does not underflow.
"""

from __future__ import annotations

import json
import math
import random

import pytest
from helpers.data import DATA

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.truthfulqa.grader import mc2

FILE = DATA / "truthfulqa" / "mc_task.json"

needs_data = pytest.mark.data("truthfulqa/mc_task.json")

# -- by hand: probabilities of the choices, labels, share of the true ones ------------------------

BY_HAND = [
    ([0.5, 0.25], [1, 0], 2 / 3),
    ([0.5, 0.25], [0, 1], 1 / 3),
    ([0.2, 0.2, 0.2, 0.2], [1, 1, 0, 0], 1 / 2),
    ([0.1, 0.2, 0.3], [1, 1, 0], 1 / 2),
    ([0.1, 0.2, 0.3], [0, 1, 0], 1 / 3),
    ([0.1, 0.2, 0.3], [1, 0, 1], 2 / 3),
    ([0.3, 0.3, 0.3], [0, 0, 1], 1 / 3),
    ([1.0, 1.0], [1, 0], 1 / 2),  # they need not sum to 1: each is a choice of its own
    ([0.7], [1], 1.0),
    ([0.7], [0], 0.0),
    ([0.1, 0.2], [1, 1], 1.0),
    ([0.1, 0.2], [0, 0], 0.0),
    ([0.4, 0.1, 0.1, 0.2, 0.2], [1, 0, 0, 0, 0], 2 / 5),
    ([0.06, 0.02, 0.01, 0.01], [1, 1, 0, 0], 4 / 5),
    ([1e-10, 3e-10], [1, 0], 1 / 4),
    ([1e-300, 3e-300], [0, 1], 3 / 4),
    ([0.5, 1e-300], [1, 0], 1.0),
    ([0.5, 1e-300], [0, 1], 2e-300),
]


@pytest.mark.parametrize(("probabilities", "labels", "share"), BY_HAND)
def test_share_by_hand(probabilities, labels, share):
    assert mc2([math.log(p) for p in probabilities], labels) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("shift", [-1e5, -2000.0, -745.0, 0.0, 1000.0])
def test_long_choices_keep_their_ratio(shift):
    """Log-likelihoods of -2000 underflow to 0 each, yet their ratio is as good as any: e : 1."""
    assert mc2([shift + 1, shift], [1, 0]) == pytest.approx(math.e / (1 + math.e), rel=1e-9)


def test_impossible_choices_have_no_share():
    assert mc2([-math.inf, -3.0], [1, 0]) == 0.0
    assert mc2([-math.inf, -3.0, -math.inf], [0, 1, 1]) == 1.0


def test_the_order_of_choices_does_not_matter():
    rows = [(-1.5, 1), (-0.5, 0), (-7.0, 1), (-3.0, 0)]
    share = mc2(*zip(*rows, strict=True))
    for seed in range(20):
        random.Random(seed).shuffle(rows)
        assert mc2(*zip(*rows, strict=True)) == pytest.approx(share, rel=1e-14)


@pytest.mark.parametrize(
    "values", [[math.nan, -1.0], [-1.0, math.nan], [-math.inf, -math.inf], [math.inf, -1.0]]
)
def test_a_broken_model_is_reported_instead_of_scored(values):
    with pytest.raises(UserError, match="not a probability"):
        mc2(values, [1, 0])


def test_lists_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 log-likelihoods for 1"):
        mc2([-1.0, -2.0], [1])
    with pytest.raises(ValueError, match="0 log-likelihoods"):
        mc2([], [])
    with pytest.raises(ValueError, match="0 or 1"):
        mc2([-1.0, -2.0], [1, 2])


# -- the real choices ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions() -> list[dict[str, int]]:
    return [row["mc2_targets"] for row in json.loads(FILE.read_text(encoding="utf-8"))]


@needs_data
def test_a_model_that_knows_the_truth_scores_one(questions):
    """True choices at -1, false ones at -1000: 1; the other way round: 0."""
    assert len(questions) == 817
    for choices in questions:
        labels = list(choices.values())
        assert mc2([-1.0 if label else -1000.0 for label in labels], labels) == pytest.approx(1)
        assert mc2([-1000.0 if label else -1.0 for label in labels], labels) < 1e-9
        # A model that knows nothing gives the share of true choices.
        even = mc2([-5.0] * len(labels), labels)
        assert even == pytest.approx(sum(labels) / len(labels), rel=1e-12)


@needs_data
def test_agrees_with_lm_eval(questions):
    """On all questions with random log-likelihoods, 2 nats per word.

    The one difference is listed: where every choice is below -745 nats, lm_eval divides 0 by 0.
    """
    np = pytest.importorskip("numpy")
    utils = pytest.importorskip("lm_eval.tasks.truthfulqa.utils", exc_type=ImportError)
    draw = random.Random(0)
    for choices in questions:
        labels = list(choices.values())
        values = [-2 * draw.random() * len(choice.split()) for choice in choices]
        doc = {"mc2_targets": {"labels": labels}}
        theirs = utils.process_results_mc2(doc, [(value, False) for value in values])["acc"]
        assert mc2(values, labels) == pytest.approx(theirs, rel=1e-12)
    doc = {"mc2_targets": {"labels": [1, 0]}}
    with np.errstate(invalid="ignore"):
        assert math.isnan(utils.process_results_mc2(doc, [(-800, False), (-801, False)])["acc"])
    assert mc2([-800, -801], [1, 0]) == pytest.approx(math.e / (1 + math.e))
