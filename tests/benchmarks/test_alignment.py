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
    ours = alignment.gradient(model, chosen, [1 / 3] * 3)
    ours -= alignment.gradient(model, rejected, [1 / 3] * 3)
    means = [alignment.mean_loglik(model, side) for side in (chosen, rejected)]
    margin = means[0] - means[0].detach() - (means[1] - means[1].detach())
    loss = -torch.nn.functional.logsigmoid(5.0 * margin).mean()
    model.zero_grad()
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    assert torch.allclose(theirs, -2.5 * ours, atol=1e-5 * theirs.abs().max().item())


def test_a_slope_is_the_gradient_along_it(alignment, loaded, tiny_model, rows):
    model, _ = loaded(tiny_model)
    before = [p.detach().clone() for p in model.parameters()]
    target = alignment.gradient(model, rows[:3], [1 / 3] * 3)
    unit = target / target.norm()
    slopes = alignment.along(model, rows, unit)
    for row, slope in zip(rows, slopes, strict=True):
        exact = (alignment.gradient(model, [row], [1.0]) @ unit).item()
        assert slope == pytest.approx(exact, rel=2e-2, abs=2e-2 * abs(slopes).max())
    for now, was in zip(model.parameters(), before, strict=True):
        assert torch.allclose(now, was, atol=1e-6)
    same = alignment.alignment(target, target, slopes[:3])
    assert same.cosine == pytest.approx(1, rel=1e-4) == same.sign_share
    assert slopes[:3].mean() / target.norm().item() == pytest.approx(1, rel=1e-2)


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
