"""Protects the preference losses: values and gradients worked by hand, and their properties.

Also what a loss refuses (shapes, a missing reference), how settings reach it, and its value before
the first step. Equality with another implementation is in test_tune_losses_against_trl.py.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deltalearn.recipe import TuneSpec
from deltalearn.recipe.methods import DEFAULT_GAMMA, DEFAULT_SMOOTHING, METHODS
from deltalearn.tune.losses import PREFERENCE_LOSSES, bind_loss, loss_at_start

ALL = sorted(PREFERENCE_LOSSES)
WITH_REFERENCE = [name for name in ALL if METHODS[name].reference]
LN2 = math.log(2)


def tensors(*columns: float | list[float], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The six arguments; log-probabilities in `dtype`, lengths as integers, as in training."""
    rows = [column if isinstance(column, list) else [column] for column in columns]
    sums = [torch.tensor(row, dtype=dtype) for row in rows[:4]]
    return [*sums, *(torch.tensor(row) for row in rows[4:])]


def gradients(loss, arguments: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and their gradients by policy_chosen and policy_rejected."""
    chosen, rejected = (a.clone().requires_grad_() for a in arguments[:2])
    losses, _ = loss(chosen, rejected, *arguments[2:])
    return losses.detach(), *torch.autograd.grad(losses.sum(), (chosen, rejected))


@dataclass(frozen=True)
class Worked:
    """One loss of the pair below, worked by hand, and its gradients by the two policy sums."""

    method: str
    options: dict[str, float]
    margin: float
    loss: float
    by_chosen: float
    by_rejected: float
    pair: list[Tensor] = field(repr=False)


# Policy sums -6 and -10, reference sums -8 and -9, lengths 4 and 5: log-ratios 2 and -1, per token
# .5 and -.2, margins 3 and .7; mean log-probabilities -1.5 and -2. Sigmoids s(x) used below:
# s(.1) = .524979, s(.2) = .549834, s(.3) = .574443, s(.6) = .645656, s(3.5) = .970688.
PAIR = tensors(-6, -10, -8, -9, 4, 5)
# Mean probabilities 1/2 and 1/5, so odds 1 and 1/4.
ODDS = tensors(4 * math.log(1 / 2), 5 * math.log(1 / 5), 0, 0, 4, 5)
WORKED = [
    # -log s(5 x .7); -5/4 s(-3.5) and 5/5 s(-3.5)
    Worked("dpo_norm", {"beta": 5.0}, 0.7, 0.029750, -0.036640, 0.029312, PAIR),
    # .9 x .029750 + .1 x (.029750 + 3.5); slope .9 s(-3.5) - .1 s(3.5) = -.070688
    Worked(
        "dpo_norm", {"beta": 5.0, "label_smoothing": 0.1}, 0.7, 0.379750, 0.088360, -0.070688, PAIR
    ),
    # -log s(.1 x 3); -.1 s(-.3)
    Worked("dpo", {"beta": 0.1}, 3.0, 0.554355, -0.0425557, 0.0425557, PAIR),
    # .9 x .554355 + .1 x (.554355 + .3); .1 x (.9 s(-.3) - .1 s(.3)) = .1 x .325557
    Worked(
        "dpo", {"beta": 0.1, "label_smoothing": 0.1}, 3.0, 0.584355, -0.0325557, 0.0325557, PAIR
    ),
    # (.9 x .554355 - .1 x .854355) / .8; .1 x (.9 s(-.3) + .1 s(.3)) / .8 = .1 x .440446 / .8
    Worked(
        "robust", {"beta": 0.1, "label_smoothing": 0.1}, 3.0, 0.516855, -0.0550557, 0.0550557, PAIR
    ),
    # (.7 - 5)^2; 2 x (.7 - 5) / 4 and -2 x (.7 - 5) / 5
    Worked("ipo", {"beta": 0.1}, 0.7, 18.49, -2.15, 1.72, PAIR),
    # 1 - .1 x 3, and beyond the hinge (beta m = 1.5 > 1) nothing
    Worked("hinge", {"beta": 0.1}, 3.0, 0.7, -0.1, 0.1, PAIR),
    Worked("hinge", {"beta": 0.5}, 3.0, 0.0, 0.0, 0.0, PAIR),
    # (1 - s(.2)) + s(-.1); -.1 s(.2) s(-.2) and .1 s(.1) s(-.1)
    Worked("apo_zero", {"beta": 0.1}, 3.0, 0.925187, -0.0247517, 0.0249376, PAIR),
    # s(.2) + (1 - s(.3)); .1 (s(.2) s(-.2) - s(.3) s(-.3)) and .1 s(.3) s(-.3)
    Worked("apo_down", {"beta": 0.1}, 3.0, 0.975391, 0.0003058, 0.0244458, PAIR),
    # (2 - 5)^2 + (-1 + 5)^2; 2 x (2 - 5) and 2 x (-1 + 5)
    Worked("sppo", {"beta": 0.1}, 3.0, 25.0, -6.0, 8.0, PAIR),
    # margin -1.5 + 2 - .4 / 2 = .3; -log s(2 x .3); -2/4 s(-.6) and 2/5 s(-.6)
    Worked("simpo", {"beta": 2.0, "gamma": 0.4}, 0.3, 0.437488, -0.177172, 0.141738, PAIR),
    # margin log(1 / .25) = 1.386294, s = .8; log 2 - .1 log .8;
    # (-1 - .1 x .2 / (1 - .5)) / 4 and .1 x .2 / (1 - .2) / 5
    Worked("orpo", {"beta": 0.1}, 1.386294, 0.715462, -0.26, 0.005, ODDS),
]


@pytest.mark.parametrize("case", WORKED, ids=lambda c: f"{c.method}-{c.options}")
def test_worked_by_hand(case):
    loss = partial(PREFERENCE_LOSSES[case.method], **case.options)
    _, margins = loss(*case.pair)
    losses, by_chosen, by_rejected = gradients(loss, case.pair)
    assert margins.item() == pytest.approx(case.margin, abs=1e-6)
    assert losses.item() == pytest.approx(case.loss, abs=1e-6)
    assert by_chosen.item() == pytest.approx(case.by_chosen, abs=1e-6)
    assert by_rejected.item() == pytest.approx(case.by_rejected, abs=1e-6)


def test_every_loss_is_worked():
    assert {case.method for case in WORKED} == set(PREFERENCE_LOSSES)


sums = st.floats(-300, 0)
lengths = st.integers(1, 400)
shares = st.floats(0, 0.49)
PAIRS = st.tuples(sums, sums, sums, sums, lengths, lengths)
BETAS = st.floats(0.01, 10)


def for_many(**columns):
    """Fewer examples than by default: each runs for every method."""
    return lambda test: settings(max_examples=40)(given(**columns)(test))


def swapped(a: list[Tensor]) -> list[Tensor]:
    """The same pair with its label flipped."""
    return [a[1], a[0], a[3], a[2], a[5], a[4]]


class TestProperties:
    @for_many(pair=PAIRS, beta=BETAS, share=shares)
    @pytest.mark.parametrize("method", ["dpo", "dpo_norm"])
    def test_smoothing_mixes_the_pair_with_its_flip(self, method, pair, beta, share):
        plain = partial(PREFERENCE_LOSSES[method], beta=beta)
        a = tensors(*pair)
        smoothed, margins = plain(*a, label_smoothing=share)
        expected = (1 - share) * plain(*a)[0] + share * plain(*swapped(a))[0]
        torch.testing.assert_close(smoothed, expected)
        assert torch.equal(margins, plain(*a)[1]), "smoothing is no matter of the margin"

    @for_many(pair=PAIRS, beta=BETAS, share=shares)
    def test_robust_undoes_flips_in_expectation(self, pair, beta, share):
        """(1 - s) robust(pair) + s robust(flipped pair) = dpo(pair): unbiased, with s = 0 dpo."""
        a = tensors(*pair)
        robust = partial(PREFERENCE_LOSSES["robust"], beta=beta, label_smoothing=share)
        expected = (1 - share) * robust(*a)[0] + share * robust(*swapped(a))[0]
        plain, _ = PREFERENCE_LOSSES["dpo"](*a, beta=beta)
        torch.testing.assert_close(expected, plain, atol=1e-9, rtol=1e-9)

    @for_many(pair=PAIRS)
    @pytest.mark.parametrize("method", ALL)
    def test_a_flipped_pair_has_the_opposite_margin(self, method, pair):
        options = {"gamma": 0.0} if method == "simpo" else {}
        a = tensors(*pair)
        _, margins = PREFERENCE_LOSSES[method](*a, **options)
        _, flipped = PREFERENCE_LOSSES[method](*swapped(a), **options)
        torch.testing.assert_close(flipped, -margins)

    @for_many(pair=PAIRS, beta=BETAS)
    @pytest.mark.parametrize("method", ["dpo", "dpo_norm", "simpo"])
    def test_logged_margin_is_the_argument_over_beta(self, method, pair, beta):
        """The loss follows from the logged margin and beta alone."""
        losses, margins = PREFERENCE_LOSSES[method](*tensors(*pair), beta=beta)
        x = beta * margins.item()
        assert losses.item() == pytest.approx(max(-x, 0) + math.log1p(math.exp(-abs(x))))

    @pytest.mark.slow
    @for_many(pair=PAIRS, length=lengths, beta=BETAS)
    def test_equal_lengths_only_rescale_beta(self, pair, length, beta):
        a = tensors(*pair[:4], length, length)
        normalised, per_token = PREFERENCE_LOSSES["dpo_norm"](*a, beta=beta)
        summed, in_total = PREFERENCE_LOSSES["dpo"](*a, beta=beta / length)
        torch.testing.assert_close(normalised, summed)
        torch.testing.assert_close(per_token * length, in_total)

    @for_many(pair=PAIRS, moved=st.tuples(sums, sums))
    @pytest.mark.parametrize("method", WITH_REFERENCE)
    def test_only_the_distance_from_the_reference_counts(self, method, pair, moved):
        a = tensors(*pair)
        shifted = [a[0] + moved[0], a[1] + moved[1], a[2] + moved[0], a[3] + moved[1], *a[4:]]
        for one, other in zip(
            PREFERENCE_LOSSES[method](*a), PREFERENCE_LOSSES[method](*shifted), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)

    @for_many(pair=PAIRS, other=st.tuples(sums, sums))
    @pytest.mark.parametrize("method", [n for n in ALL if not METHODS[n].reference])
    def test_reference_free_losses_ignore_it(self, method, pair, other):
        a = tensors(*pair)
        without = PREFERENCE_LOSSES[method](a[0], a[1], None, None, *a[4:])
        given_one = PREFERENCE_LOSSES[method](*a[:2], *tensors(*other), *a[4:])
        for one, two in zip(without, given_one, strict=True):
            assert torch.equal(one, two)

    @for_many(pair=PAIRS)
    @pytest.mark.parametrize(
        "method", ["dpo", "dpo_norm", "robust", "hinge", "apo_zero", "simpo", "orpo"]
    )
    def test_raising_chosen_never_hurts_and_raising_rejected_never_helps(self, method, pair):
        _, by_chosen, by_rejected = gradients(PREFERENCE_LOSSES[method], tensors(*pair))
        assert by_chosen.item() <= 0 <= by_rejected.item()

    @for_many(pair=PAIRS)
    def test_apo_down_lowers_both(self, pair):
        """Rejected always; chosen is held at the start, where anchor and contrast cancel.

        At log-ratios 0 the gradients are .1 x (.25 - .25) and .1 x .25.
        """
        loss = PREFERENCE_LOSSES["apo_down"]
        assert gradients(loss, tensors(*pair))[2].item() >= 0
        start = tensors(pair[0], pair[1], pair[0], pair[1], *pair[4:])
        _, by_chosen, by_rejected = gradients(loss, start)
        assert (by_chosen.item(), by_rejected.item()) == pytest.approx((0, 0.025))

    @for_many(pair=PAIRS, beta=BETAS)
    def test_ipo_and_sppo_pull_towards_their_targets(self, pair, beta):
        """Below the target 1 / (2 beta) the margin (the log-ratio) is raised, above it lowered."""
        a, target = tensors(*pair), 1 / (2 * beta)
        ipo = partial(PREFERENCE_LOSSES["ipo"], beta=beta)
        _, by_chosen, by_rejected = gradients(ipo, a)
        missing = ipo(*a)[1].item() - target
        assert (by_chosen * a[4]).item() == pytest.approx(2 * missing)
        assert (by_rejected * a[5]).item() == pytest.approx(-2 * missing)
        sppo = partial(PREFERENCE_LOSSES["sppo"], beta=beta)
        _, by_chosen, by_rejected = gradients(sppo, a)
        assert by_chosen.item() == pytest.approx(2 * (pair[0] - pair[2] - target))
        assert by_rejected.item() == pytest.approx(2 * (pair[1] - pair[3] + target))

    @pytest.mark.parametrize("method", ALL)
    def test_a_pair_is_not_changed_by_its_neighbours(self, method):
        pairs = [(-6, -10, -8, -9, 4, 5), (-1, -2, -3, -1, 2, 7), (-40, -3, -30, -4, 90, 1)]
        together = PREFERENCE_LOSSES[method](*tensors(*(list(c) for c in zip(*pairs, strict=True))))
        for i, pair in enumerate(pairs):
            for whole, alone in zip(
                together, PREFERENCE_LOSSES[method](*tensors(*pair)), strict=True
            ):
                assert whole[i].item() == pytest.approx(alone.item(), rel=1e-12)


EXTREMES = [0.0, -1e-30, -1e-7, -1.0, -1e6]


class TestNumbers:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("method", ALL)
    def test_extreme_inputs_stay_finite(self, method, dtype):
        """Certain and hopeless answers on either side, one token or a hundred thousand."""
        values = [
            (a, b, c, d)
            for a in EXTREMES
            for b in EXTREMES
            for c in (0.0, -1e6)
            for d in (0.0, -1e6)
        ]
        for length in (1, 100_000):
            a = tensors(
                *map(list, zip(*values, strict=True)),
                [length] * len(values),
                [1] * len(values),
                dtype=dtype,
            )
            for value in gradients(PREFERENCE_LOSSES[method], a):
                assert torch.isfinite(value).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("method", ALL)
    def test_dtype_is_kept(self, method, dtype):
        for value in PREFERENCE_LOSSES[method](*tensors(-6, -10, -8, -9, 4, 5, dtype=dtype)):
            assert value.dtype == dtype

    def test_a_hopeless_margin_costs_in_proportion(self):
        """-log s(-x) is x to the last digit for large x; 1 + exp(x) would overflow."""
        losses, _ = PREFERENCE_LOSSES["dpo"](*tensors(-1e5, 0, 0, 0, 1, 1, dtype=torch.float32))
        assert losses.item() == 1e4

    @pytest.mark.parametrize(
        ("logprob", "log_odds"),
        [(-1e-13, 29.9336062), (-1e-3, 6.9072552), (-math.log(2), 0.0), (-30.0, -30.0)],
    )
    def test_orpo_near_certainty(self, logprob, log_odds):
        """log p - log(1 - p) is -log(exp(-log p) - 1): for log p = -1e-13, 13 ln 10 = 29.9336062.

        There log(1 - exp(log p)) has lost most of its digits. Rejected has odds 1, log odds 0.
        """
        _, margins = PREFERENCE_LOSSES["orpo"](*tensors(logprob, -LN2, 0, 0, 1, 1))
        assert margins.item() == pytest.approx(log_odds, abs=1e-7)

    def test_orpo_of_a_rounded_up_certainty(self):
        """A sum may end a rounding error above 0; that counts as certain, not as NaN."""
        orpo = PREFERENCE_LOSSES["orpo"]
        above = gradients(orpo, tensors(1e-7, -1.0, 0, 0, 1, 1, dtype=torch.float32))
        at = gradients(orpo, tensors(0.0, -1.0, 0, 0, 1, 1, dtype=torch.float32))
        for one, other in zip(above, at, strict=True):
            torch.testing.assert_close(one, other)


class TestRefusals:
    @pytest.mark.parametrize("method", ALL)
    def test_one_tensor_of_another_shape(self, method):
        """Any of these would broadcast against (3,) without a word."""
        for place in range(6):
            for shape in [(), (1,), (3, 1), (1, 3), (3, 3)]:
                a = tensors(*[[-1.0] * 3] * 4, [1] * 3, [1] * 3)
                a[place] = torch.ones(shape)
                with pytest.raises(ValueError, match=rf"{method} takes six tensors of one shape"):
                    PREFERENCE_LOSSES[method](*a)

    @pytest.mark.parametrize("method", ALL)
    def test_six_columns(self, method):
        with pytest.raises(ValueError, match="six tensors"):
            PREFERENCE_LOSSES[method](*[torch.ones(3, 1)] * 6)

    @pytest.mark.parametrize("method", WITH_REFERENCE)
    def test_a_missing_reference(self, method):
        with pytest.raises(ValueError, match=f"{method} needs the log-probabilities of the ref"):
            PREFERENCE_LOSSES[method](*PAIR[:2], None, None, *PAIR[4:])

    @pytest.mark.parametrize("method", ["dpo", "dpo_norm", "robust"])
    @pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, math.nan])
    def test_a_share_of_flips_that_is_none(self, method, share):
        with pytest.raises(ValueError, match="label_smoothing"):
            PREFERENCE_LOSSES[method](*PAIR, label_smoothing=share)


class TestSettings:
    @pytest.mark.parametrize("method", ALL)
    def test_defaults_are_those_of_the_method(self, method):
        options = {
            name: parameter.default
            for name, parameter in inspect.signature(PREFERENCE_LOSSES[method]).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        expected = {"beta": METHODS[method].beta}
        if "label_smoothing" in METHODS[method].options:
            expected["label_smoothing"] = DEFAULT_SMOOTHING.get(method, 0.0)
        if "gamma" in METHODS[method].options:
            expected["gamma"] = DEFAULT_GAMMA
        assert options == expected
        for bound, plain in zip(
            bind_loss(TuneSpec(method=method))(*PAIR), PREFERENCE_LOSSES[method](*PAIR), strict=True
        ):
            assert torch.equal(bound, plain)

    @pytest.mark.parametrize("case", WORKED, ids=lambda c: f"{c.method}-{c.options}")
    def test_settings_reach_the_loss(self, case):
        losses, _ = bind_loss(TuneSpec(method=case.method, **case.options))(*case.pair)
        assert losses.item() == pytest.approx(case.loss, abs=1e-6)

    def test_sft_compares_nothing(self):
        with pytest.raises(ValueError, match="sft is not a preference loss"):
            bind_loss(TuneSpec(method="sft"))

    @pytest.mark.parametrize(
        ("method", "options", "value"),
        [
            ("dpo_norm", {}, LN2),
            ("dpo_norm", {"beta": 0.3, "label_smoothing": 0.2}, LN2),
            ("dpo", {"label_smoothing": 0.4}, LN2),
            ("robust", {"label_smoothing": 0.4}, LN2),
            ("ipo", {}, 25.0),  # (0 - 5)^2
            ("ipo", {"beta": 0.5}, 1.0),
            ("hinge", {"beta": 7.0}, 1.0),
            ("apo_zero", {"beta": 7.0}, 1.0),
            ("apo_down", {"beta": 7.0}, 1.0),
            ("sppo", {}, 50.0),  # 25 on each side
            ("sppo", {"beta": 1.0}, 0.5),
            ("simpo", {}, None),
            ("orpo", {}, None),
            ("sft", {}, None),
        ],
    )
    def test_loss_at_start(self, method, options, value):
        spec = TuneSpec(method=method, **options)
        assert loss_at_start(spec) == (value if value is None else pytest.approx(value))
        if value is not None:
            a, b = [-3.25, -0.5], [-7.0, -90.0]
            losses, margins = bind_loss(spec)(*tensors(a, b, a, b, [2, 1], [9, 30]))
            assert losses.tolist() == pytest.approx([value, value])
            assert margins.tolist() == [0, 0]
