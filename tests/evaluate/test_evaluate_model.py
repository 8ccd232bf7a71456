"""Protects what stands between lm_eval and a model: memory of answers, samples, limits that fit.

An answer that is known is not asked again, the same request asked n times is n samples, and a
context that is too short shortens answers instead of cutting prompts in silence.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from deltalearn.evaluate.harness import model as module
from deltalearn.evaluate.harness.backends import BackendOptions
from deltalearn.evaluate.harness.cache import Answers
from deltalearn.evaluate.harness.loading import group_size
from deltalearn.evaluate.harness.model import CachedLM
from deltalearn.evaluate.reply import Reply
from deltalearn.util.signals import Stopped


class Inner:
    """Answers with the number of the call, and what it was asked."""

    max_length = 1000
    tokenizer = "a tokenizer"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def tok_encode(self, text: str) -> list[int]:
        return list(range(len(text)))

    def generate_until(self, requests, disable_tqdm=False):
        assert disable_tqdm
        first = len(self.asked)
        self.asked += [r.args for r in requests]
        return [f"answer {first + i} to {r.args[0][:5]}" for i, r in enumerate(requests)]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += [r.args for r in requests]
        return [(-float(len(r.args[1])), True) for r in requests]


class Straight:
    """Asks as a server does, of what `Inner` answers; a text of None is passed on."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner

    def ask(self, kind, requests, keep, stopped):
        for at, request in enumerate(requests):
            if not stopped():
                keep(at, getattr(self.inner, kind)([Instance(kind, {}, request, 0)], True)[0])


def written(context: str, **options) -> Instance:
    return Instance("generate_until", {}, (context, {"until": [], **options}), 0)


@pytest.fixture
def remembering(tmp_path: Path):
    """`remembering(identity)` -> (model, inner), over the same file."""
    opened = []

    def make(identity: str = "m") -> tuple[CachedLM, Inner]:
        answers = Answers(tmp_path / "answers.sqlite")
        opened.append(answers)
        inner = Inner()
        return CachedLM(inner, identity, answers), inner

    yield make
    for answers in opened:
        answers.close()


def test_known_answers_are_not_asked_again(remembering):
    model, inner = remembering()
    requests = [written("one", max_gen_toks=5), written("two", max_gen_toks=5)]
    first = model.generate_until(requests)
    again, other = remembering()
    assert again.generate_until(requests) == first
    assert other.asked == []
    again.generate_until([written("one", max_gen_toks=6)])
    assert len(other.asked) == 1, "another limit is another request"
    third, inner = remembering("another model")
    third.generate_until(requests)
    assert len(inner.asked) == 2


def test_the_same_request_n_times_is_n_samples(remembering):
    model, _ = remembering()
    answers = model.generate_until([written("one", max_gen_toks=5)] * 4)
    assert len(set(answers)) == 4
    again, other = remembering()
    assert again.generate_until([written("one", max_gen_toks=5)] * 6)[:4] == answers
    assert len(other.asked) == 2, "two more, not six"


@pytest.mark.parametrize("served", [False, True])
def test_each_sample_has_a_seed_of_its_own(remembering, served):
    """With one seed for all, as lm_eval sends it, twenty samples would be one."""
    model, inner = remembering()
    model.server = Straight(inner) if served else None
    sampled = Instance(
        "generate_until", {}, ("one", {"until": [], "max_gen_toks": 5, "do_sample": True}), 0
    )
    model.generate_until([sampled] * 3)
    model.generate_until([written("greedy", max_gen_toks=5)])
    seeds = [options.get("seed") for _, options in inner.asked]
    assert len(set(seeds[:3])) == 3 and seeds[3] is None


def test_what_is_beside_an_answer_is_kept_and_counted(remembering):
    given = [Reply("Paris", "<think>hm</think>"), Reply("", "<think>hm", "unfinished"),
             Reply("", "Par<|im_start|>", "control")]  # fmt: skip
    requests = [written(f"prompt {i}", max_gen_toks=5) for i in range(3)]
    for asked, inner in (remembering() for _ in range(2)):
        inner.generate_until = lambda requests, disable_tqdm: given
        found = asked.generate_until(requests)
        assert found == ["Paris", "", ""]
        assert [reply.reasoning for reply in found] == [reply.reasoning for reply in given]
        assert asked.issues.notes() == [
            "1 replies reasoned up to the limit, or to an end, without an answer: they count as "
            "empty answers",
            "1 replies have a control token within the answer: they count as empty answers",
        ]


def test_values_come_back_in_order_and_as_numbers(remembering):
    model, _ = remembering()
    pairs = [("a context", " x"), ("longer context here", "yyy"), ("c", "")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for _ in range(2):  # asked, then read
        assert model.loglikelihood(requests) == [(-2.0, True), (-3.0, True), (0.0, True)]


def test_a_short_context_shortens_the_answer_and_says_so(remembering):
    model, inner = remembering()
    model.generate_until([written("x" * 100, max_gen_toks=512)])
    assert inner.asked[-1][1]["max_gen_toks"] == 512
    assert model.issues.notes() == []
    model.generate_until([written("x" * 700, max_gen_toks=512)])
    assert inner.asked[-1][1]["max_gen_toks"] == 256, "300 tokens are left: 4 x 64"
    model.generate_until([written("x" * 990, max_gen_toks=512)])
    assert inner.asked[-1][1]["max_gen_toks"] == 64
    assert model.issues.notes() == [
        "the context left 2 answers less than the limit",
        "1 prompts were cut on the left to fit the context",
    ]


def test_sampling_does_not_depend_on_what_was_asked_before(remembering):
    """Each request is seeded by its content, whatever its group."""
    requests = [written(f"prompt {i}", max_gen_toks=5, do_sample=True) for i in range(6)]
    seeds = []
    for identity, size in (("m", 2), ("m", 6), ("m2", 2)):
        model, inner = remembering(identity)
        model.answers.get = lambda keys: {}
        model.group_size = size
        model.generate_until(requests)
        seeds.append({context: options["seed"] for context, options in inner.asked})
    assert len(set(seeds[0].values())) == 6
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2], "another model draws otherwise"


def test_a_stop_keeps_what_is_done(remembering, monkeypatch):
    model, inner = remembering()
    model.group_size = 2
    asked = SimpleNamespace(asked=False)

    class Stop:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        @property
        def asked(self):
            return len(inner.asked) >= 4

        def leave(self, where):
            raise Stopped(where)

    monkeypatch.setattr(module, "SafeStop", Stop)
    requests = [written(f"prompt {i}", max_gen_toks=5) for i in range(6)]
    with pytest.raises(Stopped, match="4 of 6 requests done"):
        model.generate_until(requests)
    assert not asked.asked
    monkeypatch.undo()
    again, other = remembering()
    again.generate_until(requests)
    assert len(other.asked) == 2


def test_a_server_keeps_each_answer_and_no_text_is_none(remembering):
    """Asked to stop after three of six, one of them without text: two are in the file."""
    model, inner = remembering()
    texts = iter(["one", None, "three"])
    inner.generate_until = lambda requests, disable_tqdm: [next(texts)]

    class Stopping(Straight):
        def ask(self, kind, requests, keep, stopped):
            super().ask(kind, requests[:3], keep, stopped)

    model.server = Stopping(inner)
    requests = [written(f"prompt {i}", max_gen_toks=5) for i in range(6)]
    with pytest.raises(Stopped, match="3 of 6 requests done"):
        model.generate_until(requests)
    assert model.issues.notes() == [
        "the server gave no text for 1 requests (content null): they count as empty answers, and "
        "the next run asks them again"
    ]
    again, other = remembering()
    again.generate_until(requests)
    assert len(other.asked) == 4


def test_a_kill_costs_a_few_batches():
    """Through transformers a group of requests is some batches and not 128."""
    assert group_size(BackendOptions(kind="hf", model="m", batch_size=8)) == 32
    assert group_size(BackendOptions(kind="hf", model="m", batch_size=1)) == 4
    assert group_size(BackendOptions(kind="hf", model="m", batch_size=64)) == module.GROUP_SIZE
    assert group_size(BackendOptions(kind="vllm", model="m")) == module.GROUP_SIZE


def test_nothing_is_announced_where_everything_is_known(remembering):
    told = []
    for _ in range(2):
        model, _ = remembering()
        model.before = lambda: told.append("asked")
        model.generate_until([written("one", max_gen_toks=5)])
    assert told == ["asked"]
