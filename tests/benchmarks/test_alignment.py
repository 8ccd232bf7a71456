"""Protects the alignment of a preference with gold answers: gradients, slopes, shares."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from deltalearn.formats.questions import Item
from deltalearn.lm.chat import answer_ids, prompt_ids


@pytest.fixture
def alignment(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("alignment")


@pytest.fixture
def rows(loaded, tiny_model):
    _, tokenizer = loaded(tiny_model)
    prompts = prompt_ids(tokenizer, [[{"role": "user", "content": f"fox {i}"}] for i in range(6)])
    texts = ["the dog", "jumps over", "a lazy", "two weak answers", "does", "not mind"]
    return list(zip(prompts, answer_ids(tokenizer, texts, [True] * 6), strict=True))


def test_the_difference_of_two_gradients_is_that_of_the_loss(alignment, loaded, tiny_model, rows):
    """Of the length-normalised DPO loss where policy and reference are equal, but for -beta / 2."""
    model, _ = loaded(tiny_model)
    chosen, rejected = rows[:3], rows[3:]
    ours = alignment.mean_gradient(model, chosen)[0] - alignment.mean_gradient(model, rejected)[0]
    means = [alignment.mean_loglik(model, side) for side in (chosen, rejected)]
    margin = means[0] - means[0].detach() - (means[1] - means[1].detach())
    loss = -torch.nn.functional.logsigmoid(5.0 * margin).mean()
    model.zero_grad()
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    assert torch.allclose(theirs, -2.5 * ours, atol=1e-5 * theirs.abs().max().item())


def test_a_slope_is_what_a_small_step_gives(alignment, loaded, tiny_model, rows):
    """Held against a finite difference along the target."""
    model, _ = loaded(tiny_model)
    target, _ = alignment.mean_gradient(model, rows[:3])
    mean, slopes = alignment.mean_gradient(model, rows, [target])
    unit, size, values = target / target.norm(), 1e-2, []
    for sign in (1.0, -2.0, 1.0):  # there, to the other side, and back
        with torch.no_grad():
            at = 0
            for weights in model.parameters():
                part = unit[at : at + weights.numel()]
                weights.add_(part.view_as(weights), alpha=sign * size)
                at += weights.numel()
            values.append(alignment.mean_loglik(model, rows).double())
    expected = ((values[0] - values[1]) / (2 * size)).numpy()
    assert slopes[:, 0] == pytest.approx(expected, rel=2e-2, abs=2e-2 * abs(expected).max())
    assert (mean @ unit).item() == pytest.approx(slopes.mean(), rel=1e-4)
    same = alignment.alignment(target, target, slopes[:3, 0])
    assert same.cosine == pytest.approx(1, rel=1e-4) and same.sign_share == pytest.approx(
        1, rel=1e-4
    )
    assert slopes[:3].mean() / target.norm().item() == pytest.approx(1, rel=1e-4)


def test_other_numbers_are_other_numbers_of_the_same_form(alignment):
    text = "He has 3 + 41 = <<3+41=44>>44 apples.\n#### 44"
    found = alignment.with_other_numbers(text, 0)
    numbers = [re.findall(r"\d+", one) for one in (text, found)]
    assert re.sub(r"\d+", "", found) == re.sub(r"\d+", "", text)
    assert all(a != b and len(a) == len(b) for a, b in zip(*numbers, strict=True))


def test_the_table(alignment, tiny_model, capsys):
    def item(i: int) -> Item:
        return Item(str(i), "all", ({"role": "user", "content": f"fox {i}"},), f"dog {i} jumps")

    items = [item(i) for i in range(6)]
    answers = {
        name: alignment.answer(f"{tiny_model}{heat}", items[:4], 5, "float32")
        for name, heat in (("cold", ""), ("hot", "@2"))
    }
    pairs = [("cold", "hot"), ("hot", "cold")]
    found = alignment.measure(str(tiny_model), answers, pairs, items[4:])
    one, other = (found["pairs"][name]["gold"] for name in ("cold/hot", "hot/cold"))
    assert one["cosine"] == pytest.approx(-other["cosine"], abs=1e-3)
    assert one["lo"] < one["cosine"] < one["hi"]
    assert "cold over hot: gold" in capsys.readouterr().out
