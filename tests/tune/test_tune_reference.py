"""Protects the reference cache: an answer is scored once for good, and never taken for another.

Content-addressed by weights, precision and ids; crash-safe; shared by every loss, beta, lr, seed
and pairing (docs/pitfalls.md; among them two stale hits reproduced in TRL).
"""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from accelerate import Accelerator

from deltalearn.formats.preferences import PairRow
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.scoring import score_answers
from deltalearn.tune import reference as module
from deltalearn.tune.reference import ReferenceCache, answer_key, reference_logprobs
from deltalearn.tune.tokenize import prepare_examples
from deltalearn.tune.train import _sample

ROWS = [((1, 2), (3, 4)), ((1,), (2, 3, 4)), ((1, 2), (3, 4)), ((1, 2), (5,))]


@pytest.fixture
def model(loaded, tiny_model):
    return copy.deepcopy(loaded(tiny_model)[0])


@pytest.fixture
def tokenizer(loaded, tiny_model):
    return loaded(tiny_model)[1]


def score(model, answers, path, scope="model:float32", budget=64):
    """(values, how many had to be computed)."""
    from deltalearn.lm.layout import Tree

    rows = choose_rows(model, [Tree(p, (a,)) for p, a in answers])
    with ReferenceCache(path) as cache:
        values = reference_logprobs(
            model, answers, cache, scope, rows, budget, Accelerator(cpu=True)
        )
        return values.tolist(), cache.scored


def test_values_are_those_of_the_model_and_scored_once_for_good(model, tmp_path):
    """Nothing but weights, precision and ids is in the key."""
    values, scored = score(model, ROWS, tmp_path / "r.sqlite")
    expected = dict(score_answers(model, ROWS))
    assert values == pytest.approx([expected[i] for i in range(4)], abs=1e-5)
    assert scored == 3, "equal answers of equal prompts are one"
    again, scored = score(model, ROWS[::-1], tmp_path / "r.sqlite", budget=1)
    assert again == values[::-1]
    assert scored == 0


@pytest.mark.parametrize("scope", ["model:bfloat16", "other:float32"])
def test_other_weights_or_precision_miss(model, tmp_path, scope):
    score(model, ROWS, tmp_path / "r.sqlite")
    assert score(model, ROWS, tmp_path / "r.sqlite", scope)[1] == 3


def test_split_between_prompt_and_answer_matters():
    keys = {
        answer_key("m", (1, 2), (3,)),
        answer_key("m", (1,), (2, 3)),
        answer_key("m", (1, 2, 3), ()),
        answer_key("m1", (1, 2), (3,)),
    }
    assert len(keys) == 4


def test_what_was_scored_before_a_failure_is_kept(model, tmp_path, monkeypatch):
    """A power cut at 99 % loses a commit's worth, not the whole."""
    monkeypatch.setattr(module, "COMMIT_EVERY", 1)
    original, calls = module.score_batch, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        return original(*args)

    monkeypatch.setattr(module, "score_batch", failing)
    with pytest.raises(RuntimeError):
        score(model, ROWS, tmp_path / "r.sqlite", budget=4)
    monkeypatch.setattr(module, "score_batch", original)
    _, scored = score(model, ROWS, tmp_path / "r.sqlite")
    assert scored in (1, 2)


def pair(prompt: str, chosen: str, rejected: str) -> PairRow:
    turns = ({"role": "user", "content": prompt},)
    return PairRow(prompt, turns, chosen, rejected, "stop", "stop")


def answers_of(examples) -> list:
    pairs = [examples[i] for i in range(len(examples))]
    return [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]


def test_another_truncation_is_never_a_stale_hit(model, tokenizer, tmp_path):
    """TRL reuses values after max_length changed (keep_end); here cut answers are other ids."""
    rows = [pair("question", "the better of two weak answers " * 2, "the worse of them " * 2)]
    whole, _ = prepare_examples(tokenizer, rows, 96, truncation="cut")
    cut, _ = prepare_examples(tokenizer, rows, len(whole[0].prompt) + 6, truncation="cut")
    assert len(cut[0].chosen) < len(whole[0].chosen)
    before, _ = score(model, answers_of(whole), tmp_path / "r.sqlite")
    after, scored = score(model, answers_of(cut), tmp_path / "r.sqlite")
    assert scored == 2
    assert after != pytest.approx(before)


def test_every_loss_and_weighting_shares_plain_sums(model, tmp_path):
    """TRL reuses values after ld_alpha changed, which it had folded in. Here a plain sum is kept,
    so a loss that normalises or weights finds nothing folded in."""
    values, _ = score(model, ROWS, tmp_path / "r.sqlite")
    keys = [answer_key("model:float32", *row) for row in ROWS]
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        kept = cache.known(keys)
    assert [kept[key] for key in keys] == pytest.approx(values)
    assert values == pytest.approx([total for _, total in sorted(score_answers(model, ROWS))])


def test_a_ladder_of_seven_needs_seven_scorings_a_prompt(model, tokenizer, tmp_path):
    """21 pairings of 7 models: 42 answers to score for peers, 7 here."""
    questions = ["question", "another question", "a third"]
    ladder = {m: [f"{m} answer to {q}" for q in questions] for m in "abcdefg"}
    total = 0
    for worse, better in combinations(ladder, 2):
        rows = [pair(q, ladder[better][i], ladder[worse][i]) for i, q in enumerate(questions)]
        examples, _ = prepare_examples(tokenizer, rows, 96)
        assert len(examples) == 3
        _, scored = score(model, answers_of(examples), tmp_path / "r.sqlite")
        total += scored
    assert total == 7 * len(questions)


def test_ids_may_be_lists_or_arrays(tokenizer):
    prompt = prompt_ids(tokenizer, [[{"role": "user", "content": "hi"}]])[0]
    answer = answer_ids(tokenizer, ["yes"], [True])[0]
    import numpy as np

    as_arrays = answer_key("m", np.array(prompt, np.int32), np.array(answer, np.int64))
    assert as_arrays == answer_key("m", prompt, tuple(answer))


def test_sample_for_the_layout_holds_the_longest_pair(tokenizer):
    from types import SimpleNamespace

    rows = [pair("question", "a" * (i + 1), "b") for i in range(9)]
    examples, _ = prepare_examples(tokenizer, rows, 96)
    sample = _sample(examples, SimpleNamespace(method="dpo"))
    longest = max(len(examples[i].chosen) for i in range(9))
    assert max(len(t.answers[0]) for t in sample) == longest
    only_chosen = _sample(examples, SimpleNamespace(method="sft"))
    assert {len(t.answers) for t in only_chosen} == {1}


def test_scores_are_without_gradient(model, tmp_path):
    with ReferenceCache(tmp_path / "r.sqlite") as cache:
        from deltalearn.lm.forward import PADDED, attach

        attach(model)
        values = reference_logprobs(model, ROWS, cache, "m", PADDED, 64, Accelerator(cpu=True))
    assert not values.requires_grad
    assert values.dtype == torch.float32
