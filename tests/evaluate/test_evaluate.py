"""Protects scores: log-probabilities equal a slow reference, whatever the batch and the padding.

The reference applies no trick: one row at a time, unpadded, all logits in float64, one token after
the other. By hand, for logits (0, ln 3) the second token has probability 3/4; an answer of two such
tokens and an end of probability 1/2 has expected accuracy 9/32, and a log-likelihood of
ln(9/32) / 4 where it has four bytes (the end counts, and has none).
"""

from __future__ import annotations

import copy
import json
import math
import types

import pytest
import torch
from helpers.scored import score_files
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from deltalearn.errors import UserError
from deltalearn.evaluate.reference.score import Asked
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.formats.questions import Item
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.decode import Sampling, decode
from deltalearn.lm.load import Placement
from deltalearn.lm.locate import locate
from deltalearn.lm.logprobs import (
    Sequences,
    collate,
    length_batches,
    padded_logprobs,
)
from deltalearn.lm.scoring import score_answers

Row = tuple[list[int], list[int]]
ROWS: list[Row] = [  # (prompt, answer), lengths mixed, one answer of a single token
    ([5, 9, 11, 60, 3, 8, 44], [7, 7, 2]),
    ([6], [30]),
    ([1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]),
    ([50] * 12, [51, 50]),
]


def answer_logprobs(model, batch: Sequences) -> torch.Tensor:
    """Sums of `padded_logprobs` by row, (B,)."""
    parts = padded_logprobs(model, batch).split(batch.lengths.tolist())
    return torch.stack([part.sum() for part in parts])


def slow_logprobs(model, row: Row) -> list[float]:
    """Log-probability of each answer token: full float64 logits of one unpadded row."""
    prompt, answer = row
    model = copy.deepcopy(model).double()
    values = []
    for at, token in enumerate(answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer[:at]]])).logits[0, -1]
        values.append(torch.log_softmax(logits, -1)[token].item())
    return values


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
        )
    )


def gemma2():
    """Like Gemma 2: logits are soft-capped after the head, every second layer attends locally."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=4,
            max_position_embeddings=32,
            final_logit_softcapping=2.0,
            attn_logit_softcapping=5.0,
            initializer_range=0.5,
        )
    )


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request, loaded, tiny_model):
    if request.param == "llama":
        return loaded(tiny_model)[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"gpt2": gpt2, "gemma2": gemma2}[request.param]().eval()


# -- log-probabilities ---------------------------------------------------------------------------


def test_answer_logprobs_equal_the_slow_reference(model):
    with torch.no_grad():
        tokens = padded_logprobs(model, collate(ROWS))
        sums = answer_logprobs(model, collate(ROWS))
    expected = [slow_logprobs(model, row) for row in ROWS]
    flat = [value for row in expected for value in row]
    assert tokens.tolist() == pytest.approx(flat, abs=2e-4)
    assert sums.tolist() == pytest.approx([sum(row) for row in expected], abs=5e-4)
    assert min(flat) < -5  # far from uniform, so that a mix-up of rows or tokens would show


def test_softcapping_is_in_effect():
    """Capped at 2, no two log-probabilities can differ by more than 4."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = gemma2().eval()
        loose = copy.deepcopy(model)
    loose.config.final_logit_softcapping = None
    with torch.no_grad():
        tokens = padded_logprobs(model, collate(ROWS))
        uncapped = padded_logprobs(loose, collate(ROWS))
    assert tokens.min() > -math.log(64) - 4
    assert uncapped.min() < -math.log(64) - 4


def test_head_is_applied_only_where_an_answer_token_is_predicted(model):
    seen = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    try:
        with torch.no_grad():
            answer_logprobs(model, collate(ROWS))
            model(input_ids=torch.tensor([[1, 2, 3]]))
    finally:
        handle.remove()
    answers = sum(len(answer) for _, answer in ROWS)
    assert seen == [(1, answers, head.out_features), (1, 3, head.out_features)]  # and then all


def test_head_is_whole_again_after_an_error(model):
    bad = collate([([1], [2])])
    bad.input_ids[0, 0] = 10_000  # no such id
    with pytest.raises(IndexError):
        answer_logprobs(model, bad)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_gradients_equal_those_of_the_full_computation(model):
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def gradients(compute) -> dict[str, torch.Tensor]:
        own = copy.deepcopy(model).double()
        (compute(own) * weights).sum().backward()
        return {name: p.grad for name, p in own.named_parameters()}

    def full(own) -> torch.Tensor:
        sums = []
        for prompt, answer in ROWS:
            logits = own(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(logprobs[range(len(answer)), answer].sum())
        return torch.stack(sums)

    ours = gradients(lambda own: answer_logprobs(own, collate(ROWS)))
    expected = gradients(full)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        # Norms are computed in float32 inside the models, so float64 agrees to about 1e-6.
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-4, msg=name)
    assert max(g.abs().max() for g in expected.values()) > 1


def test_neighbours_and_padding_change_nothing(model):
    with torch.no_grad():
        together = answer_logprobs(model, collate(ROWS)).tolist()
        alone = [answer_logprobs(model, collate([row])).item() for row in ROWS]
        turned = answer_logprobs(model, collate(ROWS[::-1])).tolist()[::-1]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(turned, abs=1e-4)


def test_half_precision_logits_are_summed_in_float32(model):
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        sums = answer_logprobs(half, collate(ROWS))
    assert sums.dtype == torch.float32
    exact = [sum(slow_logprobs(half, row)) for row in ROWS]
    assert sums.tolist() == pytest.approx(exact, rel=0.1, abs=1)


def test_collate_by_hand():
    batch = collate([([1, 2], [3]), ([4], [5, 6, 7])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch.predicts.tolist() == [[False, True, False, False], [True, True, True, False]]
    assert batch.targets.tolist() == [3, 5, 6, 7]
    assert batch.lengths.tolist() == [1, 3]


@pytest.mark.parametrize("row", [([], [1]), ([1], [])])
def test_collate_refuses_an_empty_side(row):
    """An empty answer would have log-probability 0: certainty about nothing."""
    with pytest.raises(ValueError, match="row 1 has an empty prompt or answer"):
        collate([([1], [2]), row])


def uniform_model(logits: list[float]):
    """A `model` with the same next-token logits everywhere."""
    head = torch.nn.Linear(1, len(logits), bias=True)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))

    class Constant(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.head = head

        def get_output_embeddings(self):
            return self.head

        def forward(self, input_ids, use_cache):
            return types.SimpleNamespace(logits=self.head(torch.ones(*input_ids.shape, 1)))

    return Constant()


def test_by_hand():
    """Probabilities (1/4, 3/4): tokens 1, 1 then 0 have 3/4 * 3/4 * 1/4 = 9/64."""
    model = uniform_model([0.0, math.log(3)])
    sums = answer_logprobs(model, collate([([0], [1, 1, 0]), ([0, 1], [0])]))
    assert sums.exp().tolist() == pytest.approx([9 / 64, 1 / 4])


def test_scores_come_once_each_longest_first_and_leave_gradients_on(model):
    scores = score_answers(model, ROWS, token_budget=14)
    first = next(scores)
    assert first[0] == 3 and torch.is_grad_enabled()
    rest = list(scores)
    assert sorted(i for i, _ in [first, *rest]) == [0, 1, 2, 3]
    by_row = dict([first, *rest])
    assert [by_row[i] for i in range(4)] == pytest.approx(
        [sum(slow_logprobs(model, row)) for row in ROWS], abs=5e-4
    )


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 300))
def test_length_batches_are_a_partition_within_the_budget(lengths, budget):
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    flat = [(-lengths[i], i) for batch in batches for i in batch]
    assert flat == sorted(flat)  # longest first, the rest in their own order
    for batch in batches[:-1]:  # none is needlessly small
        assert (len(batch) + 1) * lengths[batch[0]] > budget


# -- scoring a model on items --------------------------------------------------------------------

CPU64 = Placement("cpu", "float64")
QUESTIONS = {  # what the lab's largest model is asked, and the answers it is scored on
    "dup abcde": "aabbccddee",
    "rev abc": "cba",
    "rev fed": "fed",
    "sort jihgfe": "efghij",
    "odd aj": "a",
}


def item(question: str, answer: str, task: str = "t") -> Item:
    return Item(f"id {question}", task, ({"role": "user", "content": question},), answer)


ITEMS = [item(q, a) for q, a in QUESTIONS.items()]
GREEDY = {"greedy_accuracy", "greedy_answer", "reasoning", "fault", "extracted"}
ALL_METRICS = ("expected_accuracy", "greedy_accuracy", "loglik")


@pytest.fixture(scope="module")
def lab(lab_ladder):
    return locate(str(lab_ladder / "m"))


@pytest.fixture
def score(lab, cpu):
    def run(items=ITEMS, metrics=ALL_METRICS, max_tokens=16, token_budget=10_000, placement=cpu):
        return score_files(
            lab,
            items,
            Asked(metrics, SCORERS["exact"], max_tokens, token_budget),
            placement=placement,
        )

    return run


def test_scores_equal_a_slow_reference(score, loaded, lab_ladder):
    model, tokenizer = loaded(lab_ladder / "m")
    rows = score()
    assert [row["id"] for row in rows] == [f"id {q}" for q in QUESTIONS]
    for row, (question, answer) in zip(rows, QUESTIONS.items(), strict=True):
        (prompt,) = prompt_ids(tokenizer, [[{"role": "user", "content": question}]])
        (ids,) = answer_ids(tokenizer, [answer], [True])
        assert ids[-1] == tokenizer.eos_token_id and len(ids) == len(answer) + 1
        logprobs = slow_logprobs(model, (prompt, ids))
        # Accuracy is that of the whole answer and its end; loglik its logarithm, by bytes.
        assert row["expected_accuracy"] == pytest.approx(math.exp(sum(logprobs)), rel=1e-3)
        assert row["loglik"] == pytest.approx(sum(logprobs) / len(answer), rel=1e-3)
    assert max(row["expected_accuracy"] for row in rows) > 0.1
    assert min(row["expected_accuracy"] for row in rows) < 1e-3


@pytest.mark.parametrize("answer", ["answers", "你好世界", "weak answers"])
def test_a_log_likelihood_does_not_depend_on_the_tokenizer(answer, tiny_model, loaded, cpu):
    """It is a function of the answer's probability and its bytes, whatever the number of tokens."""
    (ids,) = answer_ids(loaded(tiny_model)[1], [answer], [True])
    one = Item("a", "all", ({"role": "user", "content": "question"},), answer)
    asked = Asked(("expected_accuracy", "loglik"), SCORERS["exact"], 4, 999)
    files = locate(str(tiny_model))
    (row,) = score_files(files, [one], asked, placement=cpu)
    assert len(ids) != len(answer.encode()), "or else nothing is shown"
    expected = math.log(row["expected_accuracy"]) / len(answer.encode("utf-8"))
    assert row["loglik"] == pytest.approx(expected, rel=1e-5)


def test_expected_accuracy_is_the_frequency_of_that_answer(score, lab, cpu, lab_ladder, loaded):
    """What it claims to be: 1000 samples at temperature 1 hit the answer that often (4 sigma)."""
    model, tokenizer = loaded(lab_ladder / "m")
    (row,) = score([ITEMS[1]])
    ids = prompt_ids(tokenizer, [ITEMS[1].messages])
    wanted = tuple(answer_ids(tokenizer, ["cba"], [False])[0])
    answers = decode(model, tokenizer, ids * 1000, Sampling(1.0, 1.0, 8), list(range(1000)))
    hits = sum(a.ended and a.ids == wanted for a in answers) / 1000
    p = row["expected_accuracy"]
    assert 0.05 < p < 0.95
    assert hits == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 1000))


def test_greedy_accuracy_needs_the_text_and_the_end(score):
    (row,) = score([ITEMS[0]])
    answer = row["greedy_answer"]
    assert len(answer) > 4
    right, wrong = item("dup abcde", answer), item("dup abcde", answer + "a")
    assert [r["greedy_accuracy"] for r in score([right, wrong])] == [1.0, 0.0]
    # With room for the text but not for its end, it is cut, not right.
    n = len(answer)
    (cut,) = score([right], max_tokens=n)
    assert (cut["greedy_answer"], cut["greedy_accuracy"]) == (answer, 0.0)
    (ended,) = score([right], max_tokens=n + 1)
    assert ended["greedy_accuracy"] == 1.0
    (short,) = score([item("dup abcde", answer[:4])], max_tokens=4)
    assert (short["greedy_answer"], short["greedy_accuracy"]) == (answer[:4], 0.0)


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        (("expected_accuracy",), {"expected_accuracy"}),
        (("loglik",), {"loglik"}),
        (("greedy_accuracy",), GREEDY),
        (("loglik", "greedy_accuracy"), {"loglik", *GREEDY}),
    ],
)
def test_only_the_metrics_asked_for_are_measured(score, metrics, keys):
    full = score()
    for row, whole in zip(score(metrics=metrics), full, strict=True):
        assert set(row) == {"id", "task", "prompt", *keys}
        assert all(row[key] == whole[key] for key in keys)


def test_batching_and_padding_change_nothing(score):
    one, many = score(token_budget=1), score(token_budget=10_000)
    for a, b in zip(one, many, strict=True):
        assert a["expected_accuracy"] == pytest.approx(b["expected_accuracy"], rel=1e-4)
        assert a["loglik"] == pytest.approx(b["loglik"], rel=1e-4)
        assert a["greedy_answer"] == b["greedy_answer"]


def test_order_of_items_changes_nothing(score):
    for a, b in zip(score(ITEMS[::-1])[::-1], score(), strict=True):
        assert a["id"] == b["id"] and a["greedy_answer"] == b["greedy_answer"]
        assert a["loglik"] == pytest.approx(b["loglik"], rel=1e-5)


def test_float64_agrees(score):
    for a, b in zip(score(), score(placement=CPU64), strict=True):
        assert a["loglik"] == pytest.approx(b["loglik"], rel=1e-3)


LONG = "rev " + "a" * 58  # 61 tokens of a context of 64


def test_item_too_long_for_the_context_is_named(score):
    """61 of the prompt, 3 letters and the end make 65."""
    with pytest.raises(UserError, match=r"evaluation item 'id rev a+' has 65 tokens.*\(64\)"):
        score([ITEMS[0], item(LONG, "aaa")], metrics=("loglik",))
    score([ITEMS[0], item(LONG, "aa")], metrics=("loglik",))  # 64 fit


def test_prompt_without_room_for_a_greedy_answer_is_a_user_error(score):
    with pytest.raises(UserError, match=r"prompt \(64 tokens\) leaves no room .* 64 tokens"):
        score([item("rev " + "a" * 61, "a")], metrics=("greedy_accuracy",))


def test_a_long_prompt_does_not_shorten_the_answers_of_the_others(score):
    (alone,) = score([ITEMS[0]], metrics=("greedy_accuracy",))
    together = score([ITEMS[0], item(LONG, "aa")], metrics=("greedy_accuracy",))
    assert together[0]["greedy_answer"] == alone["greedy_answer"]


def test_conversation_that_the_template_refuses_is_named(score):
    """Only the one at fault, wherever it stands among the others."""
    system = {"role": "system", "content": "be brief"}
    bad = Item("bad", "t", (system, *ITEMS[2].messages), "a")
    with pytest.raises(UserError, match="evaluation item 'bad': the chat template refuses"):
        score([*ITEMS[:2], bad, ITEMS[3]])


def test_answers_are_scored_byte_for_byte(tiny_model, cpu):
    """Spaces at either end, newlines and other scripts are part of the answer."""
    files = locate(str(tiny_model))
    texts = ["a", " a", "a ", "a\n", "ä", "你"]
    items = [item("dog", text) for text in texts]
    rows = score_files(files, items, Asked(("loglik",), SCORERS["exact"], 4, 999), placement=cpu)
    assert len({round(row["loglik"], 6) for row in rows}) == len(texts)


def test_rows_can_be_written_as_json(score):
    json.dumps(score())
