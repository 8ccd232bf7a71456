"""Protects the generate stage: each answer is paid for once, and identified by what made it.

The key of a request holds whatever changes the answer and nothing else; a request that cannot be
answered becomes a counted error row and its neighbours survive; a crash loses only the batch in
flight, and the batches that remain are those an uninterrupted run would have formed.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deltalearn.errors import UserError
from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.generate.stage import Window, generate
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.recipe import PricesSpec
from deltalearn.records import Prompt, Request, Response, Sampling
from deltalearn.responses.requests import RequestPlan, Settings, request_key
from deltalearn.responses.store import ResponseStore
from deltalearn.util.signals import Stopped

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=16)
SAMPLED = Sampling(temperature=1.0, top_p=0.9, max_tokens=16)
MODEL = ModelFiles("fake", Path("nowhere"), "fingerprint")


def plan_requests(
    model: ModelFiles, prompts: Sequence[Prompt], sampling: Sampling, seed: int, samples: int
) -> list[Request]:
    return list(RequestPlan(model.fingerprint, prompts, Settings(sampling, seed, samples)))


# -- the key of a request ------------------------------------------------------------------------


def key(
    model: str = "m",
    text: str = "a",
    id: str = "id",
    sampling: Sampling = SAMPLED,
    seed: int = 0,
    sample: int = 0,
    role: str = "user",
) -> str:
    prompt = Prompt(id, ({"role": role, "content": text},))
    return list(RequestPlan(model, [prompt], Settings(sampling, seed, sample + 1)))[sample].key


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"text": "b"},
        {"text": "a "},
        {"role": "system"},
        {"seed": 1},
        {"sample": 1},
        {"sampling": replace(SAMPLED, temperature=0.5)},
        {"sampling": replace(SAMPLED, temperature=0.0)},
        {"sampling": replace(SAMPLED, top_p=1.0)},
        {"sampling": replace(SAMPLED, max_tokens=17)},
    ],
)
def test_key_changes_with_whatever_changes_a_sampled_answer(change):
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"text": "b"},
        {"sampling": replace(GREEDY, max_tokens=17)},
        {"sampling": replace(GREEDY, temperature=0.1)},
    ],
)
def test_key_changes_with_whatever_changes_a_greedy_answer(change):
    assert key(**{"sampling": GREEDY, **change}) != key(sampling=GREEDY)


def test_prompt_id_is_not_in_the_key():
    assert key(id="one") == key(id="two")
    assert key(id="one", sampling=GREEDY) == key(id="two", sampling=GREEDY)


def test_seed_and_top_p_are_not_in_the_key_of_a_greedy_request():
    assert key(sampling=GREEDY, seed=1) == key(sampling=GREEDY)
    assert key(sampling=replace(GREEDY, top_p=0.5)) == key(sampling=GREEDY)


def test_order_of_keys_in_a_message_does_not_matter():
    how = Settings(GREEDY).key()
    one, two = ({"role": "user", "content": "a"},), ({"content": "a", "role": "user"},)
    assert request_key("m", one, how, 0) == request_key("m", two, how, 0)


def test_turns_cannot_be_confused_with_one_another():
    how = Settings(GREEDY).key()
    joined = ({"role": "user", "content": "ab"},)
    apart = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    assert request_key("m", joined, how, 0) != request_key("m", apart, how, 0)


def test_key_is_stable_across_versions():
    """A change of this value makes every response ever stored worthless: it must be meant."""
    assert key() == "a402b0a369b2e648b492add0a35f802328e0254b71cbc1b487723c29255a6d92"


def keyed(**changes) -> str:
    settings = Settings(**{"sampling": GREEDY, **changes})
    prompt = Prompt("p", ({"role": "user", "content": "a"},))
    return next(iter(RequestPlan("m", [prompt], settings))).key


@pytest.mark.parametrize(
    "change",
    [
        {"system": "be brief"},
        {"template": {"enable_thinking": False}},
        {"body": {"reasoning_effort": "low"}},
    ],
)
def test_what_else_the_model_is_told_is_in_the_key(change):
    assert keyed(**change) != keyed()


def test_a_system_turn_is_the_same_whether_prompt_or_settings_give_it(user_prompt):
    """The model sees the same messages, so the answer is the same and is not paid twice."""
    own = Prompt("p", ({"role": "system", "content": "be brief"}, *user_prompt("a").messages))
    given = Settings(GREEDY, system="be brief")
    assert next(iter(RequestPlan("m", [own], Settings(GREEDY)))).key == keyed(system="be brief")
    (request,) = RequestPlan("m", [own], given)
    assert request.messages == own.messages, "a prompt's own system turn is not doubled"
    (added,) = RequestPlan("m", [user_prompt("a")], given)
    assert added.prompt == user_prompt("a"), "the prompt that pairs are made of stays as it is"
    assert added.messages == own.messages


def test_plan_goes_prompt_by_prompt(user_prompt):
    plan = plan_requests(MODEL, [user_prompt("a"), user_prompt("b")], SAMPLED, seed=3, samples=2)
    assert [(r.prompt.id, r.sample) for r in plan] == [
        ("id of a", 0),
        ("id of a", 1),
        ("id of b", 0),
        ("id of b", 1),
    ]
    assert len({r.key for r in plan}) == 4
    assert plan[3].key == key("fingerprint", "b", seed=3, sample=1)


def test_adding_samples_or_prompts_keeps_the_keys_there_were(user_prompt):
    few = plan_requests(MODEL, [user_prompt("a")], SAMPLED, 0, 1)
    many = plan_requests(MODEL, [user_prompt("b"), user_prompt("a")], SAMPLED, 0, 3)
    assert few[0].key in {r.key for r in many}


# -- the loop ------------------------------------------------------------------------------------


class FakeEngine:
    """Answers in batches of two; keeps a record; fails on request."""

    name = "fake"

    def __init__(
        self, die_at: int | None = None, fails: Callable[[Request], bool] = lambda r: False
    ) -> None:
        self.die_at = die_at
        self.fails = fails
        self.planned: list[list[str]] = []
        self.asked: list[list[str]] = []
        self.closed = 0

    def __call__(self) -> FakeEngine:
        return self

    def close(self) -> None:
        self.closed += 1

    def answers(self, windows: Iterator[Window], stop) -> Iterator[list[Response]]:
        for window in windows:
            batches = [window.requests[i : i + 2] for i in range(0, len(window.requests), 2)]
            self.planned += [[r.prompt.id for r in batch] for batch in batches]
            for batch in batches:
                if stop():
                    return
                if missing := [r for r in batch if r.key in window.missing]:
                    yield self.answer(missing)

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        if len(self.asked) == self.die_at:
            raise KeyboardInterrupt
        self.asked.append([r.prompt.id for r in batch])
        return [self._answer(r) for r in batch]

    def _answer(self, request: Request) -> Response:
        if self.fails(request):
            return Response(request.key, "", (), "error", 1, error="no room", fault="too_long")
        text = request.prompt.messages[0]["content"].upper()
        return Response(request.key, text, tuple(range(len(text))), "stop", 1)


@pytest.fixture
def store(tmp_path):
    with ResponseStore(tmp_path / "responses.sqlite") as store:
        yield store


@pytest.fixture
def requests(user_prompt) -> list[Request]:
    prompts = [user_prompt(text, id=text) for text in "abcdefg"]
    return plan_requests(MODEL, prompts, SAMPLED, 0, 1)


ALL = [["a", "b"], ["c", "d"], ["e", "f"], ["g"]]


def test_everything_is_asked_once_and_counted(store, requests):
    engine = FakeEngine()
    counts = generate(store, requests, engine, title="x")
    assert engine.asked == ALL
    assert counts == {
        "requests": 7, "cached": 0, "generated": 7, "errors": 0, "truncated": 0, "tokens": 7
    }  # fmt: skip
    assert [r.text for r in store.get(r.key for r in requests).values()].count("A") == 1
    assert store.count() == 7


def test_what_is_stored_is_never_asked_again(store, requests):
    generate(store, requests, FakeEngine(), title="x")
    engine = FakeEngine()
    counts = generate(store, requests, engine, title="x")
    assert engine.asked == [] and engine.planned == []  # an engine may load its model to plan
    assert (counts["cached"], counts["generated"], counts["tokens"]) == (7, 0, 7)


def test_added_prompts_cost_only_themselves(store, requests):
    generate(store, requests[2:5], FakeEngine(), title="x")
    engine = FakeEngine()
    counts = generate(store, requests, engine, title="x")
    assert [id for batch in engine.asked for id in batch] == ["a", "b", "f", "g"]
    assert (counts["cached"], counts["generated"]) == (3, 4)


@pytest.mark.parametrize("die_at", [0, 1, 3])
def test_interruption_keeps_finished_batches_and_the_plan_of_the_rest(store, requests, die_at):
    first = FakeEngine(die_at=die_at)
    with pytest.raises(KeyboardInterrupt):
        generate(store, requests, first, title="x")
    assert store.count() == 2 * die_at
    assert first.closed == 1
    second = FakeEngine()
    counts = generate(store, requests, second, title="x")
    assert first.asked + second.asked == ALL
    assert second.planned == ALL
    assert (counts["cached"], counts["generated"]) == (2 * die_at, 7 - 2 * die_at)


def test_error_rows_are_stored_and_counted_and_siblings_survive(store, requests):
    engine = FakeEngine(fails=lambda r: r.prompt.id in "cf")
    counts = generate(store, requests, engine, title="x")
    assert counts["errors"] == 2 and counts["generated"] == 7
    found = {r.prompt.id: store.get([r.key])[r.key] for r in requests}
    assert {id for id, response in found.items() if response.error} == {"c", "f"}
    assert found["d"].text == "D"


def test_errors_are_kept_until_they_are_dropped_then_asked_alone(store, requests):
    generate(store, requests, FakeEngine(fails=lambda r: r.prompt.id in "cf"), title="x")
    engine = FakeEngine()
    assert generate(store, requests, engine, title="x")["errors"] == 2
    assert engine.asked == []
    assert store.drop_errors(r.key for r in requests) == 2
    counts = generate(store, requests, engine, title="x")
    assert engine.asked == [["c"], ["f"]]
    assert (counts["cached"], counts["generated"], counts["errors"]) == (5, 2, 0)


def test_retrying_errors_asks_for_them_and_nothing_else(store, requests):
    generate(store, requests, FakeEngine(fails=lambda r: r.prompt.id in "cf"), title="x")
    engine = FakeEngine()
    counts = generate(store, requests, engine, title="x", retry_errors=True)
    assert engine.asked == [["c"], ["f"]]
    assert (counts["cached"], counts["generated"], counts["errors"]) == (5, 2, 0)


def test_engine_that_fails_in_a_group_stores_nothing_of_it_and_is_closed(store, requests):
    engine = FakeEngine()
    engine._answer, answer = None, engine._answer
    engine.answer = lambda batch: [answer(batch[0]), answer(batch[0])]
    with pytest.raises(sqlite3.IntegrityError):
        generate(store, requests, engine, title="x")
    assert store.count() == 0
    assert engine.closed == 1


def test_an_answer_that_nobody_asked_for_is_an_error(store, requests):
    engine = FakeEngine()
    engine.answer = lambda batch: [Response("unknown", "text", (), "stop", 1)]
    with pytest.raises(KeyError):
        generate(store, requests, engine, title="x")
    assert store.count() == 0


def test_engine_is_made_only_if_something_is_missing(store, requests):
    made = []

    def make():
        made.append(FakeEngine())
        return made[-1]

    generate(store, requests, make, title="x")
    generate(store, requests, make, title="x")
    assert len(made) == 1 and made[0].closed == 1


def test_windows_are_bounded_and_requests_read_lazily(store, user_prompt, monkeypatch):
    """A million requests are never in memory together: at most two windows are."""
    monkeypatch.setattr("deltalearn.generate.stage.WINDOW", 4)
    prompts = [user_prompt(text) for text in "abcdefghijk"]
    plan = RequestPlan("m", prompts, Settings(GREEDY))
    sizes = []

    class Noting(FakeEngine):
        def answers(self, windows, stop):
            def noting():
                for window in windows:
                    sizes.append(len(window.requests))
                    yield window

            return super().answers(noting(), stop)

    counts = generate(store, plan, Noting(), title="x")
    assert sizes == [4, 4, 3]
    assert counts["generated"] == 11 == store.count()


def test_a_conversation_that_comes_again_in_a_later_window_is_asked_once(
    store, user_prompt, monkeypatch
):
    """Even while the first one is still in flight."""
    monkeypatch.setattr("deltalearn.generate.stage.WINDOW", 2)
    plan = list(RequestPlan("m", [user_prompt(t) for t in "abcdab"], Settings(GREEDY)))

    class Hoarding(FakeEngine):
        def answers(self, windows, stop):
            wanted = [r for window in windows for r in window.wanted()]
            yield self.answer(wanted)

    counts = generate(store, plan, Hoarding(), title="x")
    assert counts["generated"] == 4 == store.count()


def test_asked_to_stop_it_finishes_what_is_in_flight_and_says_where_it_stands(store, requests):
    class Stopping(FakeEngine):
        def answer(self, batch):
            if len(self.asked) == 1:
                signal.raise_signal(signal.SIGINT)
            return super().answer(batch)

    engine = Stopping()
    with pytest.raises(Stopped, match="generate x: stopped, 4 of 7 requests done"):
        generate(store, requests, engine, title="x")
    assert engine.asked == ALL[:2] and store.count() == 4
    rest = FakeEngine()
    generate(store, requests, rest, title="x")
    assert rest.asked == ALL[2:]


def test_cost_is_that_of_what_was_generated_now(store, requests):
    prices = PricesSpec(prompt=2_000_000, completion=1_000_000)  # a prompt token 2, an answer's 1
    assert generate(store, requests[:3], FakeEngine(), title="x", prices=prices)["cost"] == 9
    assert generate(store, requests, FakeEngine(), title="x", prices=prices)["cost"] == 12
    assert generate(store, requests, FakeEngine(), title="x", prices=prices)["cost"] == 0


def test_without_a_terminal_a_long_job_says_a_line_now_and_then(
    store, requests, capsys, monkeypatch
):
    monkeypatch.setattr("deltalearn.util.progress.EVERY", 0.0)
    generate(store, requests, FakeEngine(fails=lambda r: r.prompt.id == "c"), title="x")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("generate x: 4 of 7") and "1 failed" in lines[1]


def test_without_a_terminal_a_short_job_says_nothing(store, requests, capsys):
    generate(store, requests, FakeEngine(), title="x")
    assert capsys.readouterr() == ("", "")


def test_two_models_share_a_store_without_sharing_answers(store, user_prompt):
    other = replace(MODEL, fingerprint="another")
    for model in (MODEL, other):
        plan = plan_requests(model, [user_prompt("a")], GREEDY, 0, 1)
        assert generate(store, plan, FakeEngine(), title="x")["generated"] == 1
    assert store.count() == 2


def test_a_conversation_given_twice_is_asked_once(store, user_prompt):
    plan = plan_requests(MODEL, [user_prompt("a", "1"), user_prompt("a", "2")], GREEDY, 0, 1)
    assert generate(store, plan, FakeEngine(), title="x")["generated"] == 1


# -- the transformers engine ---------------------------------------------------------------------


@pytest.fixture
def tiny(tiny_model) -> ModelFiles:
    return locate(str(tiny_model))


@pytest.fixture
def lab(lab_ladder) -> ModelFiles:
    return locate(str(lab_ladder / "m"))


def ask(engine: TransformersEngine, requests: Sequence[Request]) -> dict[str, Response]:
    """All answers by prompt id, through the engine's own batches."""
    answers = {}
    for batch in engine.batches(list(requests)):
        responses = engine.answer(batch)
        assert [r.key for r in responses] == [r.key for r in batch]  # in order
        answers |= {q.prompt.id: r for q, r in zip(batch, responses, strict=True)}
    return answers


def test_batches_are_a_partition_of_similar_lengths_within_the_budget(tiny, cpu, user_prompt):
    """`@` is never merged, and the two headers and 16 answer tokens come on top."""
    prompts = [user_prompt("@" * n) for n in (5, 60, 7, 30, 31, 6, 50)]
    plan = plan_requests(tiny, prompts, GREEDY, 0, 1)
    batches = TransformersEngine(tiny, cpu, GREEDY, token_budget=150).batches(plan)
    lengths = [[len(r.prompt.messages[0]["content"]) + 2 + 16 for r in b] for b in batches]
    assert lengths == [[78], [68, 49], [48, 25, 24], [23]]  # 68 * 2 and 48 * 3 are within 150
    assert batches == TransformersEngine(tiny, cpu, GREEDY, token_budget=150).batches(plan)


def test_answers_do_not_depend_on_the_batch(tiny, cpu, user_prompt):
    prompts = [user_prompt("abc" * n) for n in (1, 9, 3, 12, 2)]
    plan = plan_requests(tiny, prompts, SAMPLED, 7, 2)
    wide = ask(TransformersEngine(tiny, cpu, SAMPLED, 10_000), plan)
    narrow = ask(TransformersEngine(tiny, cpu, SAMPLED, 1), plan)
    assert wide == narrow


def test_samples_of_a_prompt_differ_and_a_new_engine_repeats_them(tiny, cpu, user_prompt):
    plan = plan_requests(tiny, [user_prompt("abc")], SAMPLED, 0, 4)

    def texts() -> list[tuple[int, ...]]:
        engine = TransformersEngine(tiny, cpu, SAMPLED, 10_000)
        return [r.token_ids for b in engine.batches(plan) for r in engine.answer(b)]

    assert len(set(texts())) == 4
    assert texts() == texts()


def test_response_holds_ids_text_and_prompt_length(lab, cpu, user_prompt, loaded, lab_ladder):
    _, tokenizer = loaded(lab_ladder / "m")
    plan = plan_requests(lab, [user_prompt(f"rev {s}") for s in ("abc", "gfedcb")], SAMPLED, 0, 8)
    engine = TransformersEngine(lab, cpu, SAMPLED, 10_000)
    for batch in engine.batches(plan):
        for request, response in zip(batch, engine.answer(batch), strict=True):
            assert response.text == tokenizer.decode(response.token_ids, skip_special_tokens=True)
            assert tokenizer.eos_token_id not in response.token_ids
            (ids,) = prompt_ids(tokenizer, [request.prompt.messages])
            assert response.prompt_tokens == len(ids)
            assert response.error is None


def test_finish_reason_tells_an_end_from_a_cut(lab, cpu, user_prompt):
    """`dup abcde` needs ten letters: with room it ends by itself, with four tokens it is cut."""
    for max_tokens, reason in ((16, "stop"), (4, "length")):
        sampling = replace(GREEDY, max_tokens=max_tokens)
        plan = plan_requests(lab, [user_prompt("dup abcde", id="p")], sampling, 0, 1)
        response = ask(TransformersEngine(lab, cpu, sampling, 10_000), plan)["p"]
        assert response.finish_reason == reason
        assert len(response.token_ids) == max_tokens or reason == "stop"
    assert response.text == "aabb"


def context_prompts(loaded, tiny_model, user_prompt) -> list[Prompt]:
    """Prompts of exactly 10, 96, 97, 91 and 80 tokens for the tiny model's context of 96."""
    _, tokenizer = loaded(tiny_model)
    prompts = []
    for tokens in (10, 96, 97, 91, 80):
        text = "@" * (tokens - 2)  # never merged; user and assistant headers are the other two
        prompts.append(user_prompt(text, id=str(tokens)))
        assert len(prompt_ids(tokenizer, [prompts[-1].messages])[0]) == tokens
    return prompts


def test_prompts_near_the_end_of_the_context(loaded, tiny_model, tiny, cpu, user_prompt):
    prompts = context_prompts(loaded, tiny_model, user_prompt)
    plan = plan_requests(tiny, prompts, GREEDY, 0, 1)
    answers = ask(TransformersEngine(tiny, cpu, GREEDY, 10_000), plan)
    for tokens in ("96", "97"):  # no room at all
        response = answers[tokens]
        assert (response.finish_reason, response.text, response.token_ids) == ("error", "", ())
        assert response.error == f"the prompt has {tokens} tokens, the model's context is 96"
        assert response.prompt_tokens == int(tokens)
    assert (answers["91"].finish_reason, len(answers["91"].token_ids)) == ("length", 5)
    assert answers["80"].error is None and answers["10"].error is None
    # Room for exactly max_tokens is room; and nobody was shortened by a neighbour.
    for tokens in ("80", "10"):
        alone = [r for r in plan if r.prompt.id == tokens]
        assert ask(TransformersEngine(tiny, cpu, GREEDY, 1), alone)[tokens] == answers[tokens]
        assert answers[tokens].finish_reason == "stop" or len(answers[tokens].token_ids) == 16


def test_cut_answer_is_the_beginning_of_the_full_one(loaded, tiny_model, tiny, cpu, user_prompt):
    """What is cut by the context is cut, not altered: the same tokens as with a small limit."""
    prompt = context_prompts(loaded, tiny_model, user_prompt)[3]
    plan = plan_requests(tiny, [prompt], SAMPLED, 0, 1)
    long = ask(TransformersEngine(tiny, cpu, SAMPLED, 10_000), plan)["91"]
    short = ask(TransformersEngine(tiny, cpu, replace(SAMPLED, max_tokens=3), 10_000), plan)["91"]
    assert long.token_ids[:3] == short.token_ids


def test_model_is_loaded_at_the_first_batch(tiny, cpu, user_prompt):
    engine = TransformersEngine(tiny, cpu, GREEDY, 10_000)
    plan = plan_requests(tiny, [user_prompt("a")], GREEDY, 0, 1)
    batches = engine.batches(plan)
    assert engine._model is None
    first = engine.answer(batches[0])
    assert engine._model is not None
    assert engine.answer(batches[0]) == first


def test_whole_stage_with_the_real_engine_and_a_crash(lab, cpu, tmp_path, user_prompt):
    """Answers after a crash are byte for byte those of an uninterrupted run."""
    prompts = [user_prompt(f"{task} abcd"[: 5 + i % 3]) for i, task in enumerate(["rev", "dup"])]
    prompts += [user_prompt(f"sort {s}") for s in ("fed", "ja", "hgfedc", "bbaab")]
    plan = plan_requests(lab, prompts, SAMPLED, 0, 2)

    def run(path: Path, die_at: int | None) -> list[Response]:
        engine = TransformersEngine(lab, cpu, SAMPLED, token_budget=90)
        original, count = engine.answer, iter(range(100))

        def answer(batch):
            if next(count) == die_at:
                raise KeyboardInterrupt
            return original(batch)

        engine.answer = answer
        with ResponseStore(path) as store:
            generate(store, plan, lambda: engine, title="x")
            found = store.get(r.key for r in plan)
            return [found[r.key] for r in plan]

    whole = run(tmp_path / "whole.sqlite", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn.sqlite", 2)
    assert run(tmp_path / "torn.sqlite", None) == whole


def test_conversation_that_the_template_refuses_becomes_an_error_row(lab, cpu, user_prompt):
    bad = Prompt("bad", ({"role": "system", "content": "be brief"}, *user_prompt("x").messages))
    plan = plan_requests(lab, [bad, user_prompt("rev abc", id="good")], GREEDY, 0, 1)
    answers = ask(TransformersEngine(lab, cpu, GREEDY, 10_000), plan)
    assert answers["bad"].finish_reason == "error"
    assert answers["good"].finish_reason == "stop"


def test_broken_chat_template_is_a_user_error(tiny_tokenizer, user_prompt, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{% for m in messages %}")
    with pytest.raises(UserError, match="the chat template is broken"):
        prompt_ids(tiny_tokenizer, [user_prompt("a").messages])


# -- text and ids (docs/pitfalls.md) -------------------------------------------------------------

AWKWARD = [" lead", "trail ", "\n\nlines\t\n", "Größe 你好 🙂", "don't , do . that", "  ", "a" * 50]


@pytest.mark.parametrize("text", AWKWARD)
def test_answer_bytes_survive_ids_and_end_is_added_exactly_once(tiny_tokenizer, text):
    bare, ended = answer_ids(tiny_tokenizer, [text, text], [False, True])
    end = tiny_tokenizer.eos_token_id
    assert ended == [*bare, end]  # nothing between the answer and its end
    assert end not in bare
    assert tiny_tokenizer.decode(bare, skip_special_tokens=True) == text
    assert tiny_tokenizer.decode(ended, skip_special_tokens=True) == text


def test_prompt_ends_with_the_assistant_header_and_later_turns_keep_it(tiny_tokenizer):
    """What is trained on is what inference sees: the prompt is a prefix of the whole dialogue."""
    turns = [{"role": "user", "content": " a"}, {"role": "assistant", "content": "b "}]
    prompt, longer = prompt_ids(
        tiny_tokenizer, [turns[:1], [*turns, {"role": "user", "content": "c"}]]
    )
    ids = tiny_tokenizer.get_vocab()
    assert prompt[0] == ids["<|user|>"] and prompt[-1] == ids["<|assistant|>"]
    assert prompt.count(ids["<|assistant|>"]) == 1
    (answer,) = answer_ids(tiny_tokenizer, ["b "], [True])
    assert longer[: len(prompt) + len(answer)] == [*prompt, *answer]


def test_no_special_token_is_added_twice(tiny_tokenizer):
    """A tokenizer that puts a BOS before every text must not put one before the answer."""
    inner = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    system = inner.token_to_id("<|system|>")
    inner.post_processor = TemplateProcessing(
        single="<|system|> $A <|end|>",
        special_tokens=[("<|system|>", system), ("<|end|>", inner.token_to_id("<|end|>"))],
    )
    template = "{{ '<|system|>' }}" + tiny_tokenizer.chat_template
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|system|>",
        eos_token="<|end|>",
        chat_template=template,
    )
    assert tokenizer("x")["input_ids"].count(system) == 1
    (prompt,) = prompt_ids(tokenizer, [[{"role": "user", "content": "x"}]])
    assert prompt.count(system) == 1 and prompt[-1] != tokenizer.eos_token_id
    bare, ended = answer_ids(tokenizer, ["x", "x"], [False, True])
    assert bare == tiny_tokenizer("x", add_special_tokens=False)["input_ids"]
    assert ended == [*bare, tokenizer.eos_token_id]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_prompts_are_never_padded_or_cut(tiny_tokenizer, padding_side, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "padding_side", padding_side)
    long = "@" * 300  # longer than model_max_length
    short_ids, long_ids = prompt_ids(
        tiny_tokenizer, [[{"role": "user", "content": t}] for t in ("@", long)]
    )
    assert (len(short_ids), len(long_ids)) == (3, 302)
