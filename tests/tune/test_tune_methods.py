"""Protects the table of tuning methods: recipe, table and losses name the same, and each option
of a recipe either changes its loss or is refused by name.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from deltalearn.recipe import TuneSpec
from deltalearn.recipe.methods import DEFAULT_SMOOTHING, METHODS
from deltalearn.recipe.tuning import MethodName
from deltalearn.tune.losses import PREFERENCE_LOSSES, bind_loss

# A value of each option that is nobody's default, and the loss that shows whether it counts.
OPTIONS = {"beta": 3.0, "label_smoothing": 0.3, "gamma": 0.25, "nll_coef": 0.5}
PAIR = [torch.tensor([value], dtype=torch.float64) for value in (-6, -10, -8, -9, 4, 5)]


def takes(method: str, option: str) -> bool:
    return (
        METHODS[method].beta is not None if option == "beta" else option in METHODS[method].options
    )


def test_recipe_table_and_losses_name_the_same_methods():
    assert set(get_args(MethodName)) == set(METHODS)
    assert set(METHODS) - {"sft"} == set(PREFERENCE_LOSSES)
    assert all(method.meaning for method in METHODS.values())


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_an_option_counts_or_is_refused_by_name(method, option):
    given = {"method": method, option: OPTIONS[option]}
    if not takes(method, option):
        with pytest.raises(ValidationError, match=f"{option} has no effect on {method}; remove it"):
            TuneSpec(**given)
        return
    spec = TuneSpec(**given)
    if option != "nll_coef":  # added by the loop, not by the loss
        changed, _ = bind_loss(spec)(*PAIR)
        plain, _ = bind_loss(TuneSpec(method=method))(*PAIR)
        assert abs(changed.item() - plain.item()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_an_option_at_its_default_is_no_error(method):
    """A resolved recipe, with every key written out, loads again."""
    spec = TuneSpec(method=method)
    assert TuneSpec(**spec.model_dump()) == spec
    assert spec.effective_beta == METHODS[method].beta
    assert spec.effective_smoothing == DEFAULT_SMOOTHING.get(method, 0.0)


def test_the_normalised_loss_has_its_own_beta():
    """5, as in the paper; the .1 of the summed losses would hardly move a model."""
    assert METHODS["dpo_norm"].beta == 5
    assert {m.beta for n, m in METHODS.items() if m.reference and n != "dpo_norm"} == {0.1}


def test_robust_without_smoothing_is_refused():
    with pytest.raises(ValidationError, match="robust with label_smoothing 0 is dpo"):
        TuneSpec(method="robust", label_smoothing=0.0)


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0])
def test_no_more_than_half_of_the_labels_may_be_flipped(share):
    with pytest.raises(ValidationError, match="label_smoothing"):
        TuneSpec(method="dpo", label_smoothing=share)
