"""Protects decoding: tokens follow the stated distribution and depend on the request alone.

A request must get the same answer alone, beside any neighbours and after any crash; peers promise
seeded sampling that changes with the batch. Hand-worked inverse transform: sorted probabilities
(0.5, 0.3, 0.2) have cumulative sums (0.5, 0.8, 1.0), so u in [0, 0.5) picks the first, [0.5, 0.8)
the second, [0.8, 1) the third.
"""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.lm.chat import prompt_ids
from deltalearn.lm.decode import Decoded, Sampling, decode, pick_tokens, request_uniforms
from deltalearn.lm.load import end_ids, load_model
from deltalearn.lm.locate import locate

PROBABILITIES = [0.2, 0.5, 0.3]  # ids 0, 1, 2; sorted: 1, 2, 0
LOGITS = torch.tensor(PROBABILITIES).log()


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)  # via float32, 1 - 2**-53 would become 1


def pick(uniforms: list[float], temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    logits = LOGITS.expand(len(uniforms), -1)
    return pick_tokens(logits, float64(uniforms), temperature, top_p).tolist()


# -- pick_tokens ---------------------------------------------------------------------------------


def test_inverse_transform_by_hand():
    assert pick([0.0, 0.25, 0.499, 0.501, 0.799, 0.801, 0.999]) == [1, 1, 1, 2, 2, 0, 0]


def test_logits_may_be_shifted():
    shifted = pick_tokens(LOGITS.expand(3, -1) + 100, torch.tensor([0.1, 0.6, 0.9]), 1.0, 1.0)
    assert shifted.tolist() == [1, 2, 0]


def test_temperature_by_hand():
    """At temperature 1/2 probabilities square: 25 : 9 : 4 of 38, cumulative 0.658 and 0.895."""
    assert pick([0.65, 0.66, 0.89, 0.90], temperature=0.5) == [1, 2, 2, 0]


def test_high_temperature_is_nearly_uniform_and_low_is_greedy():
    assert pick([0.33, 0.34, 0.66, 0.67], temperature=1e3) == [1, 2, 2, 0]
    assert pick([0.0, 0.5, 0.999999], temperature=1e-3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("top_p", "uniforms", "picked"),
    [
        # The first alone reaches 0.4: it is always taken.
        (0.4, [0.0, 0.999], [1, 1]),
        # 0.5 + 0.3 reaches 0.6: renormalised 0.625 and 0.375, so the boundary is at 0.625.
        (0.6, [0.62, 0.63, 0.999], [1, 2, 2]),
        # 0.8 is not enough for 0.81: all three, as with top_p 1.
        (0.81, [0.49, 0.51, 0.79, 0.81, 0.999], [1, 2, 2, 0, 0]),
        (1.0, [0.49, 0.51, 0.79, 0.81, 0.999], [1, 2, 2, 0, 0]),
        (1e-9, [0.0, 0.999], [1, 1]),  # the likeliest token always stays
    ],
)
def test_nucleus_by_hand(top_p, uniforms, picked):
    assert pick(uniforms, top_p=top_p) == picked


@pytest.mark.parametrize("logits", [[0.3, 0.5, 0.2], [0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
def test_largest_uniform_stays_inside_the_nucleus(logits):
    """With top_p 0.2 one token is kept, and the largest double below 1 must still pick it.

    (Kept masses of 1/2 and 1/4 are the cases in which u * mass could round up to the mass.)
    """
    largest = float64([1 - 2**-53])
    logits = torch.tensor([logits])
    assert pick_tokens(logits, largest, 1.0, 0.2).item() == logits.argmax().item()


def test_impossible_tokens_are_never_picked():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]])
    for u in np.linspace(0, 1, 50, endpoint=False):
        assert pick_tokens(logits, float64([u]), 1.0, 1.0).item() in (1, 3)


def test_ties_are_broken_the_same_way_every_time():
    logits = torch.zeros(4, 1000)
    u = torch.tensor([0.0, 0.25, 0.5, 0.9995])
    assert pick_tokens(logits, u, 1.0, 1.0).tolist() == [0, 250, 500, 999]


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8)])
def test_frequencies_follow_the_softmax(temperature, top_p):
    """Chi-square on 20,000 draws of 8 tokens; 99.9% quantile at 7 degrees of freedom: 24.3."""
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.0, 1.5, -2.0])
    draws = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(draws))
    picked = pick_tokens(logits.expand(draws, -1), uniforms, temperature, top_p).numpy()
    wanted = np.exp(logits.double().numpy() / temperature)
    wanted /= wanted.sum()
    order = np.argsort(-wanted)
    before = np.concatenate([[0], np.cumsum(wanted[order])[:-1]])
    wanted[order[before >= top_p]] = 0  # those wholly beyond top_p
    wanted /= wanted.sum()
    counts = np.bincount(picked, minlength=8)
    assert counts[wanted == 0].sum() == 0
    kept = wanted > 0
    assert chi_square(counts[kept], draws * wanted[kept]) < 24.3
    assert top_p == 1 or not kept.all()


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
)
def test_picked_token_is_in_the_smallest_nucleus(logits, u, temperature, top_p):
    picked = pick_tokens(torch.tensor([logits]), float64([u]), temperature, top_p)
    p = (torch.tensor(logits).double() / temperature).softmax(-1)
    likelier = p[p > p[picked]].sum().item()
    assert likelier < top_p + 1e-9


# -- request_uniforms ----------------------------------------------------------------------------


def test_uniforms_of_a_request_do_not_depend_on_its_neighbours():
    seeds = [7, 0, 2**128 - 1, 123456789]
    together = request_uniforms(seeds, 10)
    assert together.shape == (4, 10)
    for row, seed in zip(together, seeds, strict=True):
        assert (row == request_uniforms([seed], 10)[0]).all()
    assert (request_uniforms(seeds[::-1], 10) == together[::-1]).all()
    assert (request_uniforms(seeds, 4) == together[:, :4]).all()  # nor on how many are drawn


def test_uniforms_differ_between_seeds_and_fill_the_unit_interval():
    values = request_uniforms(range(2000), 5)
    assert len(np.unique(values)) == values.size
    assert values.min() >= 0 and values.max() < 1
    # Standard errors: of the mean 1/sqrt(12 * 10000) = 0.0029, of a correlation 0.022.
    assert abs(values.mean() - 0.5) < 0.012
    assert np.abs(np.corrcoef(values.T) - np.eye(5)).max() < 0.1


# -- decode --------------------------------------------------------------------------------------

PROMPTS = [  # very different lengths
    "a",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "dog",
    "Deltas teach: the better of two weak answers",
    "你好",
]
SEEDS = [11, 22, 33, 44, 55]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
SAMPLED = Sampling(temperature=1.0, top_p=0.95, max_tokens=12)


@pytest.fixture(scope="module")
def tiny(loaded, tiny_model):
    model, tokenizer = loaded(tiny_model)
    return (
        model,
        tokenizer,
        prompt_ids(tokenizer, [[{"role": "user", "content": p}] for p in PROMPTS]),
    )


def slow_answer(model, tokenizer, prompt, sampling, seed=None) -> Decoded:
    """One token at a time, one request at a time, no cache, no padding."""
    ids, answer = list(prompt), []
    uniforms = None if seed is None else request_uniforms([seed], sampling.max_tokens)[0]
    for step in range(sampling.max_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        if uniforms is None:
            token = int(logits.argmax())
        else:
            u = torch.tensor(uniforms[step : step + 1])
            token = int(pick_tokens(logits[None], u, sampling.temperature, sampling.top_p))
        if token in end_ids(model, tokenizer):
            return Decoded(tuple(answer), ended=True)
        answer.append(token)
        ids.append(token)
    return Decoded(tuple(answer), ended=False)


def test_greedy_equals_a_slow_loop_despite_padding_and_cache(tiny):
    model, tokenizer, prompts = tiny
    answers = decode(model, tokenizer, prompts, GREEDY)
    assert answers == [slow_answer(model, tokenizer, p, GREEDY) for p in prompts]
    assert len({answer.ids for answer in answers}) == len(prompts)  # prompts matter


def test_sampling_equals_a_slow_loop_despite_padding_and_cache(tiny):
    model, tokenizer, prompts = tiny
    answers = decode(model, tokenizer, prompts, SAMPLED, SEEDS)
    slow = [
        slow_answer(model, tokenizer, p, SAMPLED, s) for p, s in zip(prompts, SEEDS, strict=True)
    ]
    assert answers == slow


def test_same_request_in_any_batch_gets_the_same_answer(tiny):
    model, tokenizer, prompts = tiny
    together = decode(model, tokenizer, prompts, SAMPLED, SEEDS)
    for batch in ([0], [1], [4], [3, 0], [0, 1, 4], [4, 3, 2, 1, 0], [2, 2]):
        some = decode(
            model, tokenizer, [prompts[i] for i in batch], SAMPLED, [SEEDS[i] for i in batch]
        )
        assert some == [together[i] for i in batch], batch


def test_other_seeds_give_other_answers_and_the_same_seed_the_same(tiny):
    model, tokenizer, prompts = tiny
    answers = decode(model, tokenizer, [prompts[0]] * 6, SAMPLED, [1, 2, 3, 4, 5, 1])
    assert len({answer.ids for answer in answers}) == 5
    assert answers[0] == answers[5]


def test_global_random_state_neither_matters_nor_changes(tiny):
    model, tokenizer, prompts = tiny
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = decode(model, tokenizer, prompts, SAMPLED, SEEDS)
    assert (torch.get_rng_state() == state).all()
    torch.manual_seed(2)
    assert decode(model, tokenizer, prompts, SAMPLED, SEEDS) == first


def test_sampling_without_seeds_is_an_error(tiny):
    model, tokenizer, prompts = tiny
    with pytest.raises(ValueError, match="one seed per prompt"):
        decode(model, tokenizer, prompts, SAMPLED)


def test_max_tokens_is_exact_and_a_longer_answer_only_goes_on(tiny):
    model, tokenizer, prompts = tiny
    long = decode(model, tokenizer, prompts, SAMPLED, SEEDS)
    short = decode(model, tokenizer, prompts, Sampling(1.0, 0.95, 5), SEEDS)
    for a, b in zip(long, short, strict=True):
        assert b.ids == a.ids[:5]
        assert b.ended == (a.ended and len(a.ids) < 5)
        assert b.ended or len(b.ids) == 5
    (one,) = decode(model, tokenizer, prompts[:1], Sampling(1.0, 0.95, 1), SEEDS[:1])
    assert len(one.ids) == 1 or one == Decoded((), ended=True)


@pytest.fixture
def ending(tiny):
    """The tiny model with every third id among its end-of-turn ids, so that answers end."""
    model, tokenizer, prompts = tiny
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(0, len(tokenizer), 3))
    yield model, tokenizer, prompts
    model.generation_config.eos_token_id = before


def test_answers_end_at_any_end_id_which_is_left_out(ending):
    model, tokenizer, prompts = ending
    many, seeds = prompts * 6, list(range(100, 130))
    answers = decode(model, tokenizer, many, SAMPLED, seeds)
    slow = [slow_answer(model, tokenizer, p, SAMPLED, s) for p, s in zip(many, seeds, strict=True)]
    assert answers == slow
    ends = end_ids(model, tokenizer)
    assert not any(set(answer.ids) & ends for answer in answers)
    assert any(answer.ended and not answer.ids for answer in answers)  # ended at once
    assert any(answer.ended and len(answer.ids) > 3 for answer in answers)
    assert all(answer.ended or len(answer.ids) == 12 for answer in answers)


def test_decoding_stops_when_every_answer_has_ended(ending):
    model, tokenizer, prompts = ending
    steps = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    try:
        answers = decode(model, tokenizer, prompts, Sampling(1.0, 1.0, 60), SEEDS)
    finally:
        handle.remove()
    assert all(answer.ended for answer in answers)
    assert len(steps) == max(len(answer.ids) + 1 for answer in answers) < 60


def test_end_ids_are_the_tokenizers_and_the_configs(ending):
    model, tokenizer, _ = ending
    assert end_ids(model, tokenizer) == set(range(0, len(tokenizer), 3)) | {tokenizer.eos_token_id}
    for configured, extra in ((None, set()), (5, {5}), ([5, 6], {5, 6})):
        model.generation_config.eos_token_id = configured
        assert end_ids(model, tokenizer) == {tokenizer.eos_token_id} | extra


def test_greedy_that_ends_exactly_at_the_limit_has_not_ended(ending):
    """The end id would be token n + 1: with max_tokens n the answer is cut, with n + 1 it ends."""
    model, tokenizer, prompts = ending
    for prompt in prompts:
        (full,) = decode(model, tokenizer, [prompt], Sampling(0.0, 1.0, 40))
        if full.ended and full.ids:
            break
    n = len(full.ids)
    assert full.ended and n
    (cut,) = decode(model, tokenizer, [prompt], Sampling(0.0, 1.0, n))
    (ended,) = decode(model, tokenizer, [prompt], Sampling(0.0, 1.0, n + 1))
    assert cut == Decoded(full.ids, ended=False)
    assert ended == full


def test_sampling_defaults_shipped_with_a_model_are_dropped(tiny_model, tmp_path, cpu):
    """A model's own top_k, repetition penalty or minimum length must not alter what is sampled."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    shipped = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0}
    shipped |= {"min_new_tokens": 50, "eos_token_id": [0, 9], "max_new_tokens": 2}
    (copy / "generation_config.json").write_text(json.dumps(shipped))
    config = load_model(locate(str(copy)), cpu).generation_config
    assert config.eos_token_id == [0, 9]
    for key in ("do_sample", "temperature", "top_k", "repetition_penalty", "min_new_tokens"):
        assert getattr(config, key) in (None, False), key
    assert config.max_new_tokens is None
