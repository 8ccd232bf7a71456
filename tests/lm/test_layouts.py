"""Protects the fast paths of answer log-probabilities: padded = packed = shared.

Every layout and attention gives the log-probabilities and gradients of a slow float64 reference
(one row at a time, full logits), over random lengths and for several architectures; what cannot
share a row falls back to padded rows, and says why.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from deltalearn.errors import UserError
from deltalearn.lm import head
from deltalearn.lm.forward import PADDED, RowLayout, answer_logprobs, attach, make_layout
from deltalearn.lm.layout import Tree, first_fit, lay_out, longest, tree_batches, tree_cost
from deltalearn.lm.load import keep_caps
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.scoring import score_answers

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OLD = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
}
SHARING = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gemma2, soft caps": Gemma2Config(
        **SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=100,
        attn_logit_softcapping=3.0, final_logit_softcapping=2.0,
    ),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=100),
    "gpt2": GPT2Config(**OLD, n_positions=128),
    "gpt-neox": GPTNeoXConfig(**OLD, intermediate_size=48, max_position_embeddings=128),
    "cohere, logit scale": CohereConfig(**SHAPE, logit_scale=0.5),
    "granite, logit divisor": GraniteConfig(**SHAPE, logits_scaling=3.0),
}  # fmt: skip
PADDED_ONLY = {
    "mistral": (MistralConfig(**SHAPE, sliding_window=10), "attention window of 10 tokens"),
    "bloom": (BloomConfig(**OLD), "does not take attention functions"),
    "gpt-oss, sinks": (
        GptOssConfig(
            **SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=100
        ),
        "attention does more than an ordinary one",
    ),
    "mamba": (
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8),
        "layers without full attention",
    ),
}
WAYS = [("shared", "segments"), ("shared", "sdpa"), ("packed", "segments"), ("packed", "sdpa")]


def build(config, dtype=torch.float64):
    """A model with wide random weights, so that every earlier token shows in the result."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    keep_caps(model)  # as whoever loads one has it
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def models():
    return {name: build(config) for name, config in SHARING.items()}


def random_trees(seed: int, shapes) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def ids(size: int):
        return rng.integers(2, VOCABULARY, size)

    return [Tree(ids(prompt), tuple(map(ids, answers))) for prompt, answers in shapes]


TREES = random_trees(0, [(7, (9, 4)), (3, (5, 8, 2)), (20, (1, 3)), (1, (6,))])
trees = st.lists(
    st.tuples(st.integers(1, 24), st.lists(st.integers(1, 20), min_size=1, max_size=3)),
    min_size=1,
    max_size=5,
).map(lambda shapes: random_trees(len(shapes), shapes))


def slow(model, trees) -> torch.Tensor:
    """(A,) sums by the model's plain forward: one answer at a time, all logits."""
    sums = []
    for tree in trees:
        for answer in tree.answers:
            ids = torch.tensor(np.concatenate([tree.prompt, answer]))[None]
            logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            start = len(tree.prompt) - 1
            sums.append(sum(logprobs[start + i, token] for i, token in enumerate(answer)))
    return torch.stack(sums)


def with_gradients(model, sums: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (sums * torch.linspace(-1, 2, len(sums), dtype=sums.dtype)).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def fast(model, trees, kind: str, attention: str | None):
    rows = choose_rows(model, trees, kind, attention) if attention else PADDED
    attach(model)
    assert (rows.layout, rows.attention) == (kind, attention)
    return answer_logprobs(model, make_layout(trees, rows, "cpu"), rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize(("kind", "attention"), [("padded", None), *WAYS])
def test_equals_slow_reference(models, name, kind, attention):
    model = copy.deepcopy(models[name])
    expected = slow(model, TREES)
    gradients = with_gradients(model, expected)
    ours = fast(model, TREES, kind, attention)
    # Norms (Llama, Gemma, ...) and rotary angles are float32 inside transformers' models.
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    assert expected.abs().max() > 20, "far from uniform, so that a mix-up would show"
    for parameter, gradient in with_gradients(model, ours).items():
        torch.testing.assert_close(
            gradient, gradients[parameter], rtol=1e-4, atol=1e-4, msg=parameter
        )


@settings(max_examples=15)
@given(trees=trees, name=st.sampled_from(["llama", "gpt2", "gemma2, soft caps"]))
@pytest.mark.slow
def test_any_lengths(models, trees, name):
    model = copy.deepcopy(models[name])
    results = [fast(model, trees, *way) for way in [("padded", None), *WAYS]]
    gradients = [with_gradients(model, sums) for sums in results]
    for sums, own in zip(results[1:], gradients[1:], strict=True):
        torch.testing.assert_close(sums, results[0], rtol=1e-6, atol=1e-6)
        for parameter in own:
            torch.testing.assert_close(
                own[parameter], gradients[0][parameter], rtol=1e-4, atol=1e-4, msg=parameter
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "attention"), WAYS)
def test_low_precision(dtype, kind, attention):
    exact = slow(build(SHARING["llama"]), TREES)
    with torch.no_grad():
        ours = fast(build(SHARING["llama"], dtype), TREES, kind, attention)
    assert ours.dtype == torch.float32
    rtol = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(ours.double(), exact, rtol=rtol, atol=1e-3 if rtol < 1e-3 else 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_sees_the_same_tokens(models):
    """Its forward; on a CPU flex attention has no backward."""
    model = copy.deepcopy(models["llama"])
    choose_rows(model, TREES, "shared", "sdpa")
    with torch.no_grad():
        for kind in ("shared", "packed"):
            rows = RowLayout(kind, "flex", "")
            ours = answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
            torch.testing.assert_close(ours, slow(model, TREES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device_type", [None, "cpu", "mps"])
def test_flex_is_refused_where_it_has_no_gradients(models, device_type):
    """Before the start, and not in the first backward."""
    with pytest.raises(UserError, match=r"flex has no gradients on \w+, only on cuda; use auto"):
        choose_rows(copy.deepcopy(models["llama"]), TREES, "auto", "flex", device_type)


LOW = [("weights", torch.bfloat16), ("autocast", torch.float32)]


def choose_in(way: str, model) -> RowLayout:
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        return choose_rows(model, TREES)


@pytest.mark.parametrize(("way", "dtype"), LOW)
@pytest.mark.parametrize("name", SHARING)
def test_low_precision_shares_rows(name, way, dtype):
    """Rounding is that of what is computed in: autocast leaves the weights in float32."""
    rows = choose_in(way, build(SHARING[name], dtype))
    assert rows.layout == "shared", rows.reason


@pytest.mark.parametrize("name", PADDED_ONLY)
def test_falls_back_to_padded_rows(name):
    config, reason = PADDED_ONLY[name]
    model = build(config, torch.float32)  # fused experts have no float64
    expected = slow(model, TREES)
    rows = choose_rows(model, TREES)
    assert (rows.layout, rows.attention) == ("padded", None)
    assert reason in rows.reason
    ours = answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-3)
    with pytest.raises(UserError, match=r"cannot be used.*use padded or auto"):
        choose_rows(model, TREES, "shared")


def test_a_model_that_looks_ahead_is_refused():
    """An encoder loads as a causal model; what follows a token changes its log-probability."""
    model = build(BertConfig(**OLD, intermediate_size=48, pad_token_id=0))
    with pytest.raises(UserError, match=r"bert: a token's log-probability changes .* no causal"):
        choose_rows(model, TREES)
    causal = build(BertConfig(**OLD, intermediate_size=48, pad_token_id=0, is_decoder=True))
    expected = slow(causal, TREES)
    rows = choose_rows(causal, TREES)
    ours = answer_logprobs(causal, make_layout(TREES, rows, "cpu"), rows)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_a_model_that_does_not_compute_is_an_error_in_one_line(monkeypatch):
    """A kernel that is not installed, say: its own words, and no traceback."""
    model = build(SHARING["llama"])

    def forward(*_, **__):
        raise ImportError("mamba_ssm is not installed;\nrun pip install mamba-ssm")

    monkeypatch.setattr(type(model.lm_head), "forward", forward)
    with pytest.raises(UserError, match=r"ids alone \(ImportError: mamba_ssm .*; run pip") as error:
        choose_rows(model, TREES)
    assert "\n" not in str(error.value)


def test_a_config_that_cannot_be_read_is_no_reason_to_stop():
    """Gemma 4 refuses to name a width that differs from layer to layer."""
    model = build(SHARING["llama"])
    expected = slow(model, TREES)

    class Heterogeneous(type(model.config)):
        def __getattribute__(self, name):
            if name in ("head_dim", "layer_types"):
                raise RuntimeError(f"{name!r} is a per-layer attribute")
            return super().__getattribute__(name)

    model.config.__class__ = Heterogeneous
    rows = choose_rows(model, TREES)
    assert rows.layout == "padded" and "'layer_types' is a per-layer attribute" in rows.reason
    torch.testing.assert_close(
        answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows), expected
    )


def test_a_long_window_shares():
    """A window that no pair exceeds hides nothing."""
    config = MistralConfig(**SHAPE, sliding_window=max(map(longest, TREES)))
    model = build(config)
    expected = slow(model, TREES)
    assert choose_rows(model, TREES).layout == "shared"
    torch.testing.assert_close(fast(model, TREES, "shared", "sdpa"), expected)


def ignores_positions(model) -> None:
    inner = model.model.rotary_emb.forward

    def own_positions(x, position_ids):
        return inner(x, torch.arange(x.shape[1]).expand_as(position_ids))

    model.model.rotary_emb.forward = own_positions


@pytest.mark.parametrize(("way", "dtype"), [*LOW, ("weights", torch.float64)])
def test_a_model_that_ignores_the_layout_is_found_out(way, dtype):
    """No config says so: positions that a model makes up itself show in the probe alone."""
    model = build(SHARING["llama"], dtype)
    ignores_positions(model)
    rows = choose_in(way, model)
    assert rows.layout == "padded"
    assert "differ" in rows.reason


def fails(*_, **__):
    raise NotImplementedError("NYI: a kernel for this\nand more")


def on_a_gpu(monkeypatch) -> None:
    """The back-ends of a GPU, tried here, where flex attention works without gradients."""
    offered = [("flex", "block masks on a GPU"), ("sdpa", "a dense mask")]
    monkeypatch.setattr("deltalearn.lm.rows._attentions", lambda *_: offered)


def test_attention_that_cannot_be_compiled_gives_way_to_the_next(monkeypatch):
    """An error of the probe is a failed probe, and said."""
    on_a_gpu(monkeypatch)
    assert choose_rows(build(SHARING["llama"]), TREES).attention == "flex"
    monkeypatch.setattr("deltalearn.lm.attention._flex", fails)
    model = build(SHARING["llama"])
    expected = slow(model, TREES)
    rows = choose_rows(model, TREES)
    assert (rows.layout, rows.attention) == ("shared", "sdpa")
    assert (
        "flex attention fail on this model (NotImplementedError: NYI: a kernel for this and more)"
        in rows.reason
    )
    ours = answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_where_no_attention_works_rows_are_padded(monkeypatch):
    on_a_gpu(monkeypatch)
    monkeypatch.setattr("deltalearn.lm.attention._flex", fails)
    monkeypatch.setattr("deltalearn.lm.attention._dense_mask", fails)
    model = build(SHARING["llama"])
    model.train()
    rows = choose_rows(model, TREES)
    assert rows.layout == "padded" and "sdpa attention fail" in rows.reason
    assert model.training
    with pytest.raises(UserError, match=r"layout 'shared' cannot be used: .* fail"):
        choose_rows(model, TREES, layout="shared")


@pytest.mark.parametrize(("width", "first"), [(12, "sdpa"), (16, "flex")])
def test_narrow_heads_have_no_flex_attention_on_a_gpu(width, first):
    """Found on an H100: its compiler wants 16 at least, and the lab's smallest model has 12."""
    from deltalearn.lm.rows import _attentions

    model = SimpleNamespace(config=LlamaConfig(num_attention_heads=4, head_dim=width))
    assert _attentions(model, "cuda", TREES, "shared", "auto")[0][0] == first


def test_what_was_found_out_stays_so_in_a_coarser_precision(monkeypatch):
    """A difference that 16 bits would pass for rounding was seen before, in 32."""
    differs, whole = (build(SHARING["llama"], torch.float32) for _ in range(2))
    ignores_positions(differs)
    assert "differ" in choose_rows(differs, TREES).reason
    scale(whole, 2)
    assert "more than its base model" in choose_rows(whole, TREES).reason
    monkeypatch.setattr("deltalearn.lm.rows.PROBE_COARSE", 1e9)
    assert "differ" in choose_in("autocast", differs).reason
    assert "more than its base model" in choose_in("autocast", whole).reason


def scale(model, factor: float) -> None:
    kind = type(model)

    class Scaling(kind):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * factor
            return output

    model.__class__ = Scaling


def test_a_model_that_changes_its_logits_is_scored_whole():
    model = build(SHARING["llama"])
    scale(model, 2)
    expected = slow(model, TREES)
    rows = choose_rows(model, TREES)
    assert rows.layout == "padded"
    assert "more than its base model" in rows.reason
    ours = answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bytes_kept", [0, 8 * VOCABULARY * 12, 1 << 30])  # none, two chunks, all
@pytest.mark.parametrize("name", ["llama", "gemma2, soft caps"])
def test_logits_kept_or_computed_again_are_the_same(models, name, bytes_kept, monkeypatch):
    model = copy.deepcopy(models[name])
    expected = with_gradients(model, slow(model, TREES))
    monkeypatch.setattr(head, "KEEP_BYTES", bytes_kept)
    monkeypatch.setattr(head, "_chunk_rows", lambda *_: 5)
    for parameter, gradient in with_gradients(model, fast(model, TREES, "shared", "sdpa")).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-4)


def test_buffers_of_the_head_belong_to_one_graph_at_a_time(models):
    """Two forwards before their backwards, and two backwards through one, are all exact."""
    model = copy.deepcopy(models["llama"])
    expected = with_gradients(model, slow(model, TREES))
    rows = choose_rows(model, TREES, "shared", "sdpa")
    layout = make_layout(TREES, rows, "cpu")
    weights = torch.linspace(-1, 2, len(layout.lengths), dtype=torch.float64)
    for _ in range(2):  # the second time buffers of the first are used again
        model.zero_grad()
        first, second = (answer_logprobs(model, layout, rows) for _ in range(2))
        (second @ weights).backward(retain_graph=True)
        (second @ weights).backward()
        (first @ weights).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, 3 * expected[name], rtol=1e-4, atol=1e-4)


def test_improbable_targets_keep_their_precision():
    """The logarithm of a probability that float32 cannot hold: exp(-200) is 0 in float32."""
    weight = torch.tensor([[0.0], [200.0], [199.0]])
    linear = torch.nn.Linear(1, 3, bias=False)
    linear.weight.data = weight
    hidden = torch.ones(2, 1, requires_grad=True)
    found = head.token_logprobs(linear, hidden, torch.tensor([0, 1]))
    normaliser = np.log1p(np.exp(-1))  # of logits 200 and 199, over the largest
    assert found.tolist() == pytest.approx([-200 - normaliser, -normaliser], rel=1e-6)


def test_scoring_keeps_no_probabilities():
    """A weight that is trained elsewhere asks for none while nothing is learnt."""
    taken = {}

    class Watched(head.Buffers):
        def take(self, use, rows, columns, dtype, like):
            taken[use] = rows
            return super().take(use, rows, columns, dtype, like)

    linear = torch.nn.Linear(4, 7, bias=False)
    hidden, targets = torch.randn(9, 4, requires_grad=True), torch.arange(9) % 7
    learnt = head.token_logprobs(linear, hidden, targets, buffers=Watched())
    assert taken["kept"] == 9
    with torch.no_grad():
        scored = head.token_logprobs(linear, hidden, targets, buffers=Watched())
    assert taken["kept"] == 0
    assert torch.equal(scored, learnt)


def test_the_head_sees_answer_positions_only(models):
    model = copy.deepcopy(models["gpt2"])
    model.lm_head = torch.nn.Linear(32, VOCABULARY, dtype=torch.float64)  # a bias: the plain path
    seen = []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    rows = RowLayout("shared", "sdpa", "")
    choose_rows(model, TREES, "shared", "sdpa")
    seen.clear()
    answer_logprobs(model, make_layout(TREES, rows, "cpu"), rows)
    assert sum(seen) == sum(len(a) for t in TREES for a in t.answers)


def test_layout_by_hand():
    """Prompt (5 6), answers (7) and (8 9): one row; both answers are predicted by the 6."""
    layout = lay_out([Tree([5, 6], ([7], [8, 9]))], "shared")
    assert layout.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert layout.branch.tolist() == [[0, 0, 1, 2, 2]]
    assert layout.predicts.tolist() == [1, 1, 3]
    assert layout.targets.tolist() == [7, 8, 9]
    assert layout.lengths.tolist() == [1, 2]
    packed = lay_out([Tree([5, 6], ([7], [8, 9]))], "packed")
    assert packed.input_ids.tolist() == [[5, 6, 7, 5, 6, 8, 9]]
    assert packed.document.tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    assert packed.predicts.tolist() == [1, 4, 5]
    padded = lay_out([Tree([5, 6], ([7], [8, 9]))], "padded")
    assert padded.input_ids.tolist() == [[5, 6, 7, 0], [5, 6, 8, 9]]
    assert padded.predicts.tolist() == [1, 5, 6]


@pytest.mark.parametrize("tree", [Tree([], ([1],)), Tree([1], ()), Tree([1], ([2], []))])
def test_empty_parts_are_refused(tree):
    """An empty answer would have log-probability 0: certainty about nothing."""
    with pytest.raises(ValueError, match="empty prompt, no answer or an empty answer"):
        lay_out([tree], "shared")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(50, 120))
def test_first_fit_is_a_partition_within_capacity(sizes, capacity):
    bins = first_fit(sizes, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in b) <= capacity for b in bins)


@given(
    trees=trees, kind=st.sampled_from(["shared", "packed", "padded"]), budget=st.integers(1, 150)
)
def test_batches_keep_within_the_budget(trees, kind, budget):
    batches = tree_batches(trees, kind, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(trees)))
    for batch in batches:
        part = [trees[i] for i in batch]
        computed = lay_out(part, kind).input_ids.numel()
        assert len(batch) == 1 or computed <= budget
        if kind != "padded":
            costs = [tree_cost(len(t.prompt), [len(a) for a in t.answers], kind) for t in part]
            assert computed == sum(costs)


def test_answers_of_a_prompt_are_scored_in_one_tree(models, monkeypatch):
    """Each prompt is computed once, however many answers it has."""
    model = copy.deepcopy(models["llama"])
    prompt, other = [5, 6, 7, 8], [9, 10]
    answers = [(prompt, [11, 12]), (other, [13]), (prompt, [14]), (prompt, [15, 16, 17])]
    seen = []
    original = lay_out
    monkeypatch.setattr(
        "deltalearn.lm.forward.lay_out",
        lambda *a, **k: seen.append(original(*a, **k).input_ids.numel()) or original(*a, **k),
    )
    choose_rows(model, [Tree(p, (a,)) for p, a in answers])
    seen.clear()
    scores = dict(score_answers(model, answers))
    assert seen[-1] == len(prompt) + 6 + len(other) + 1
    expected = slow(model, [Tree(p, (a,)) for p, a in answers]).tolist()
    assert [scores[i] for i in range(4)] == pytest.approx(expected, rel=1e-6)


def test_generation_is_untouched(models):
    """A model that scores rows still generates, copies and saves as what it is."""
    model = copy.deepcopy(models["llama"]).float()
    ids = torch.tensor([[5, 6, 7]])
    before = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    choose_rows(model, TREES)
    after = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(before, after)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    rows = RowLayout("shared", "sdpa", "")
    sums = answer_logprobs(twin, make_layout(TREES, rows, "cpu"), rows)
    assert sums[0].item() == pytest.approx(-9 * np.log(VOCABULARY)), "a copy has its own weights"
    assert type(model).__name__ == "LlamaForCausalLM"


def test_gradient_checkpointing_gives_the_same_gradients(models):
    model = copy.deepcopy(models["qwen2"]).train()
    plain = with_gradients(model, fast(model, TREES, "shared", "segments"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = with_gradients(model, fast(model, TREES, "shared", "segments"))
    for parameter in plain:
        torch.testing.assert_close(again[parameter], plain[parameter])
