"""Protects asking a server: every request ends as exactly one answer or one error, whatever fails.

What can pass is retried by one policy, what cannot is recorded or stops the run with the remedy, a
server that is down costs no error rows, the pace is kept, Ctrl-C ends every wait, and only the
server sees the key.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers.fault_server import FAULTS, FaultServer, Reply, answer_to, well

from deltalearn.errors import UserError
from deltalearn.generate.engines.openai_server import ServedEngine
from deltalearn.generate.stage import generate
from deltalearn.openai_api import Endpoint
from deltalearn.pairs import PairCounts, build_pairs
from deltalearn.pairs.candidates import candidates_of_requests
from deltalearn.records import Prompt, Request, Sampling
from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore
from deltalearn.util.signals import Stopped

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=16)
SAMPLED = Sampling(temperature=0.7, top_p=0.9, max_tokens=16)


def plan(questions: Iterable[str], sampling: Sampling = GREEDY, **settings) -> list[Request]:
    prompts = [Prompt(q, ({"role": "user", "content": q},)) for q in questions]
    return list(RequestPlan("served:model", prompts, Settings(sampling, **settings)))


def numbered(count: int) -> list[Request]:
    return plan(f"question {i}" for i in range(count))


@pytest.fixture
def store(tmp_path: Path):
    with ResponseStore(tmp_path / "responses.sqlite") as store:
        yield store


@pytest.fixture
def ask(store):
    """`ask(server, requests, **endpoint)` -> (counts, responses by question)."""

    def ask(
        server: FaultServer, requests: list[Request], sampling=GREEDY, template=None, **changes
    ):
        given = {"wait": 0.005, "timeout": 2.0, "patience": 5.0, **changes}
        endpoint = Endpoint(server.url, "model", **given)
        counts = generate(
            store, requests, lambda: ServedEngine(endpoint, sampling, template), title="x"
        )
        found = store.get(r.key for r in requests)
        return counts, {r.prompt.id: found[r.key] for r in requests}

    return ask


# -- the pace ------------------------------------------------------------------------------------


def test_requests_a_minute_are_kept(ask):
    """20 requests at 1,200 a minute: the last one goes after .95 s, not before."""
    with FaultServer(well) as server:
        began = time.monotonic()
        ask(server, numbered(20), rpm=1200)
        assert time.monotonic() - began >= 0.94


@pytest.mark.slow
def test_tokens_a_minute_are_kept_and_estimates_corrected(ask):
    """Each request is estimated at over 16 + 20 tokens and uses 12; at 6,000 a minute, 20 of 12."""
    with FaultServer(well) as server:
        began = time.monotonic()
        ask(server, numbered(20), tpm=6000, concurrency=1)
        elapsed = time.monotonic() - began
        assert 20 * 12 * 60 / 6000 * 0.9 <= elapsed <= 20 * 60 * 60 / 6000


def test_concurrency_is_bounded_and_used(ask):
    with FaultServer(lambda q, n: Reply(200, answer_to(q), delay=0.02)) as server:
        ask(server, numbered(60), concurrency=7)
        assert server.most_in_flight == 7


# -- whole runs ----------------------------------------------------------------------------------


def test_answers_with_what_the_server_says_of_them(ask, store):
    with FaultServer(well) as server:
        counts, found = ask(server, numbered(30))
    assert counts == {
        "requests": 30, "cached": 0, "generated": 30, "errors": 0, "truncated": 0, "tokens": 150
    }  # fmt: skip
    one = found["question 3"]
    assert (one.text, one.finish_reason, one.tries) == ("answer to question 3", "stop", 1)
    assert (one.prompt_tokens, one.tokens, one.token_ids) == (7, 5, ())
    assert one.seconds >= 0.002
    assert one.seed is None
    assert all(n == 1 for n in server.asked.values())


def test_what_is_sent(ask):
    with FaultServer(well) as server:
        ask(server, plan(["q"], SAMPLED, seed=3, samples=2), SAMPLED, {"enable_thinking": False})
        first, second = server.bodies
    assert first["model"] == "model"
    assert first["messages"] == [{"role": "user", "content": "q"}]
    assert (first["max_tokens"], first["temperature"], first["top_p"]) == (16, 0.7, 0.9)
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert first["seed"] != second["seed"], "samples of a prompt have seeds of their own"
    assert 0 <= first["seed"] < 2**31


def test_what_is_sent_to_servers_with_other_habits(ask):
    with FaultServer(well) as server:
        ask(server, plan(["q"]), length_field="max_completion_tokens", body={"top_k": 5})
        (sent,) = server.bodies
    assert sent["max_completion_tokens"] == 16 and "max_tokens" not in sent
    assert sent["top_k"] == 5
    assert "seed" not in sent and "top_p" not in sent, "greedy: they would have no effect"


@pytest.mark.parametrize(
    "message",
    [{"reasoning_content": "hm", "content": "yes"}, {"content": "<think>\nhm\n</think>\n\nyes"}],
)
def test_reasoning_is_kept_apart(ask, message):
    with FaultServer(lambda q, n: Reply(200, answer_to(q, message=message))) as server:
        _, found = ask(server, plan(["q"]))
    assert (found["q"].reasoning, found["q"].text) == ("<think>\nhm\n</think>\n\n", "yes")


def patience(fault: str) -> float:
    """Seconds for one try: short where they are waited for, else no busy machine uses them up."""
    return 1.0 if fault == "stall" else 20.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "times"),
    [("429", 2), ("429 ms", 2), ("500", 2), ("503", 2), ("stall", 2), ("reset", 2), ("half", 2),
     ("html", 1)],
)  # fmt: skip
def test_what_can_pass_is_tried_again(ask, fault, times):
    with FaultServer(lambda q, n: fault if n <= times else well(q, n)) as server:
        counts, found = ask(server, numbered(4), timeout=patience(fault))
    assert counts["errors"] == 0
    assert {r.text for r in found.values()} == {f"answer to question {i}" for i in range(4)}
    assert set(server.asked.values()) == {times + 1}
    assert all(r.tries == times + 1 for r in found.values())


@pytest.mark.parametrize(("fault", "tries"), [("null", 1), ("no choices", 1), ("html", 2)])
def test_what_would_come_again_is_not_paid_for_again(ask, fault, tries):
    with FaultServer(lambda q, n: fault if q == "question 2" else well(q, n)) as server:
        _, found = ask(server, numbered(4), tries=6)
    assert found["question 2"].fault == "malformed" and found["question 2"].tries == tries
    assert server.asked["question 2"] == tries


class Nowhere:
    """No server: a place where nothing listens, or no name, or something that speaks no TLS."""

    def __init__(self, url: str) -> None:
        self.url = url


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Plain(socketserver.BaseRequestHandler):
    """What a server without TLS says to one who begins with it."""

    def handle(self) -> None:
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.slow
@pytest.mark.parametrize("lack", ["port", "name", "TLS"])
def test_a_server_that_was_never_there_is_said_soon(ask, store, lack, capsys):
    """Not after the two minutes that one may take to come back."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Plain) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        url = {
            "port": f"http://127.0.0.1:{unused_port()}/v1",
            "name": "http://no-such-host.invalid/v1",
            "TLS": f"https://127.0.0.1:{plain.server_address[1]}/v1",
        }[lack]
        with pytest.raises(UserError, match=r"nothing answers there.*Start the server, or mend"):
            ask(Nowhere(url), numbered(3), patience=3600.0, wait=0.5)
        plain.shutdown()
    assert "trying again" in capsys.readouterr().out
    assert not store.get(r.key for r in numbered(3))


def test_a_web_page_in_place_of_a_server_ends_the_run(ask):
    with FaultServer(lambda q, n: "html") as server:
        server.models = Reply(200, "<html>")
        with pytest.raises(UserError, match="a web page, and no server of this API; mend the URL"):
            ask(server, numbered(30))
        assert max(server.asked.values()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("500", "server"), ("reset", "connection"), ("stall", "timeout")],
)
def test_what_never_passes_is_recorded_after_its_tries(ask, fault, kind):
    """One bad prompt among good ones: its error row says why, and its neighbours survive."""
    with FaultServer(lambda q, n: fault if q == "question 2" else well(q, n)) as server:
        counts, found = ask(server, numbered(6), tries=3, timeout=patience(fault))
    assert counts["errors"] == 1 and counts["generated"] == 6
    bad = found.pop("question 2")
    assert (bad.finish_reason, bad.fault, bad.tries, bad.text) == ("error", kind, 3, "")
    assert all(r.finish_reason == "stop" for r in found.values())
    assert server.asked["question 2"] == 3


def test_a_refused_prompt_is_recorded_at_once(ask):
    with FaultServer(lambda q, n: "400" if q == "question 1" else well(q, n)) as server:
        _, found = ask(server, numbered(3))
    assert found["question 1"].fault == "refused"
    assert found["question 1"].error == "HTTP 400: this prompt is not wanted"
    assert server.asked["question 1"] == 1


def test_a_rate_limit_pauses_everybody_for_as_long_as_it_asks(ask):
    begun: list[float] = []
    limited = Reply(429, {}, {"Retry-After": "0.5"})

    def limited_once(question: str, attempt: int):
        begun.append(time.monotonic())
        return limited if len(begun) == 1 else well(question, attempt)

    with FaultServer(limited_once) as server:
        ask(server, numbered(40), concurrency=4)
    assert sum(t - begun[0] < 0.5 for t in begun) <= 4 * 3, "no more than was in flight"


def test_rate_limits_do_not_wear_out_the_tries(ask):
    with FaultServer(lambda q, n: "429" if n <= 8 else well(q, n)) as server:
        counts, _ = ask(server, numbered(3), tries=2)
    assert counts["errors"] == 0


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "key_env"), (403, "may not use"), (404, "/v1"), (402, "credit")],
)
def test_what_everybody_would_meet_stops_the_run_with_the_remedy(ask, store, status, remedy):
    with FaultServer(lambda q, n: Reply(status, {"error": {"message": "no"}})) as server:
        with pytest.raises(UserError, match=remedy):
            ask(server, numbered(500), concurrency=4)
        assert sum(server.asked.values()) <= 8
    assert store.count() == 0, "no error rows: the prompts are not at fault"


def test_what_was_answered_before_the_end_is_kept(ask, store):
    def then_closed(question: str, attempt: int):
        return well(question, attempt) if int(question.split()[1]) < 50 else Reply(401, {})

    with FaultServer(then_closed) as server, pytest.raises(UserError, match="key_env"):
        ask(server, numbered(500), concurrency=4)
    assert 46 <= store.count() <= 54


def test_a_model_that_is_not_there_ends_the_run_with_those_that_are(ask, capsys):
    with FaultServer(lambda q, n: Reply(404, {})) as server:
        server.models = Reply(200, {"data": [{"id": "another"}]})
        with pytest.raises(UserError, match=r"no such model.*\(it has another\)"):
            ask(server, numbered(3))
    assert "lists no model 'model'; it has another" in capsys.readouterr().out


@pytest.mark.parametrize("listed", ["model", "model:latest"])
def test_a_model_that_is_there_is_found(ask, listed, capsys):
    """Ollama adds :latest to a name that has no tag."""
    with FaultServer(well) as server:
        server.models = Reply(200, {"data": [{"id": "another"}, {"id": listed}]})
        assert ask(server, numbered(3))[0]["errors"] == 0
    assert capsys.readouterr().out == ""


def test_a_name_that_is_not_listed_and_taken_is_warned_of(ask, capsys):
    with FaultServer(well) as server:
        server.models = Reply(200, {"data": [{"id": "another"}]})
        assert ask(server, numbered(3))[0]["errors"] == 0
    assert "warning: " in capsys.readouterr().out


@pytest.mark.parametrize("models", [Reply(404, {}), Reply(200, "<html>"), Reply(200, {"data": []})])
def test_a_server_that_does_not_list_its_models_is_asked_all_the_same(ask, models):
    with FaultServer(well) as server:
        server.models = models
        assert ask(server, numbered(3))[0]["errors"] == 0


def test_a_server_that_is_down_ends_the_run_and_leaves_no_error_rows(ask, store):
    with FaultServer(well) as server:
        pass  # the port is closed now
    # Its patience ends at about the time at which a server counts as one that never was.
    either = "(has not answered for 1 s, at last|nothing answers there): connection lost"
    with pytest.raises(UserError, match=either):
        ask(server, numbered(50), tries=2, patience=1.0)
    assert store.count() == 0


def test_a_gateway_without_its_server_counts_as_down(ask, store):
    with FaultServer(lambda q, n: "503") as server:
        server.models = FAULTS["503"]
        with pytest.raises(UserError, match=r"has not answered for 1 s.*503"):
            ask(server, numbered(50), tries=2, patience=1.0)
    assert store.count() == 0


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_costs_nothing(ask, store):
    """Down for longer than all tries of a request take: nothing is recorded as an error."""
    requests = numbered(400)
    with FaultServer(well) as server:
        port = server.port
        ask(server, requests[:100])
    back = FaultServer(well, port)
    timer = threading.Timer(1.0, back.__enter__)
    timer.start()
    try:
        counts, _ = ask(server, requests, tries=2, patience=20.0)
    finally:
        timer.join()
        back.__exit__()
    assert (counts["cached"], counts["generated"], counts["errors"]) == (100, 300, 0)


def test_a_prompt_that_kills_its_connection_is_recorded_although_it_is_alone(ask):
    """Nobody else is answered meanwhile, but the server is there: it answers a plain question."""
    with FaultServer(lambda q, n: "reset" if q == "question 0" else well(q, n)) as server:
        counts, found = ask(server, numbered(2), concurrency=1, tries=2)
    assert counts["errors"] == 1
    assert found["question 0"].fault == "connection"
    assert found["question 1"].text == "answer to question 1"


def test_asked_to_stop_it_finishes_what_is_in_flight(ask, store):
    def slow(question: str, attempt: int):
        if question == "question 20":
            os.kill(os.getpid(), signal.SIGINT)
        return Reply(200, answer_to(question), delay=0.05)

    stopped = pytest.raises(Stopped, match=r"stopped, \d+ of 300 requests done")
    with FaultServer(slow) as server, stopped:
        ask(server, numbered(300), concurrency=4)
    asked = sum(server.asked.values())
    assert 21 <= asked <= 40
    assert store.count() == asked, "what was asked was paid for, so it is kept"


@pytest.mark.parametrize("slow", ["rpm", "tpm", "quiet", "backoff"])
def test_asked_to_stop_it_waits_for_nothing(ask, store, slow, capsys):
    """Minutes of waiting for a pace, a rate limit or the next try end; nothing more is asked."""
    fate = {"quiet": Reply(429, {}, {"Retry-After": "500"}), "backoff": Reply(500, {})}
    settings = {"rpm": {"rpm": 1}, "tpm": {"tpm": 20}, "backoff": {"wait": 300.0}}

    def first_alone(question: str, attempt: int):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return fate.get(slow) or well(question, attempt)

    with FaultServer(first_alone) as server, pytest.raises(Stopped):
        ask(server, numbered(20), concurrency=1, **settings.get(slow, {}))
    assert sum(server.asked.values()) == 1
    assert store.count() == (1 if slow in ("rpm", "tpm") else 0)
    assert ("left alone for 500 s" in capsys.readouterr().out) == (slow == "quiet")


def test_errors_are_asked_again_only_when_told_to(ask, store):
    broken = {"question 1"}
    with FaultServer(lambda q, n: "400" if q in broken else well(q, n)) as server:
        requests = numbered(3)
        ask(server, requests)
        broken.clear()
        assert ask(server, requests)[0]["errors"] == 1, "not asked again by itself"
        endpoint = Endpoint(server.url, "model")
        counts = generate(
            store, requests, lambda: ServedEngine(endpoint, GREEDY), title="x", retry_errors=True
        )
    assert (counts["generated"], counts["errors"]) == (1, 0)
    assert server.asked == {"question 0": 1, "question 1": 2, "question 2": 1}


# -- the storm -----------------------------------------------------------------------------------

PASSING = ["429", "429 ms", "500", "503", "reset", "half"]


@pytest.mark.slow
def test_a_storm_over_five_thousand_requests(ask, store):
    """Every request ends as exactly one answer or one error row, and no pair comes from an error.

    Two in three questions meet one to four faults first; one in fifty is refused, one in fifty
    never gets anything but faults. Eight stall until they time out.
    """
    rng = random.Random(5)
    fates: dict[str, list[str]] = {}
    for i in range(5000):
        kind = rng.random()
        faults = rng.choices(PASSING, k=rng.randrange(1, 5)) if kind < 2 / 3 else []
        if kind > 0.98:
            faults = ["400"]
        elif kind > 0.96:
            faults = [rng.choice(["500", "reset", "half", "html"])] * 100
        elif i % 625 == 0:
            faults = ["stall"]
        fates[f"question {i}"] = faults

    def stormy(question: str, attempt: int):
        faults = fates[question]
        return faults[attempt - 1] if attempt <= len(faults) else well(question, attempt)

    requests = numbered(5000)
    with FaultServer(stormy) as server:
        counts, found = ask(
            server, requests, tries=6, timeout=10.0, patience=60.0, concurrency=128, wait=0.002
        )
    assert counts["generated"] == store.count() == len(found) == 5000
    late = 0  # good replies that a busy machine made late: those in flight, should it stall once
    for question, response in found.items():
        faults = fates[question]
        if faults[:1] == ["400"] or len(faults) > 10:
            assert response.finish_reason == "error" and response.text == "" and response.error
        else:
            assert response.text == f"answer to {question}", (faults, response)
            assert response.tries == server.asked[question] >= len(faults) + 1
            late += response.tries - len(faults) - 1
    assert late <= 128
    errors = Counter(r.fault for r in found.values() if r.finish_reason == "error")
    assert set(errors) == {"refused", "server", "connection", "malformed"}
    assert counts["errors"] == sum(errors.values())

    others = plan([r.prompt.id for r in requests], system="other")  # a second, faultless model
    with FaultServer(lambda q, n: Reply(200, answer_to(q, message={"content": "no"}))) as server:
        ask(server, others, concurrency=64)
    counted = PairCounts()
    pairs = list(build_pairs(candidates_of_requests(store, requests, others), counted))
    assert len(pairs) == 5000 - sum(errors.values())
    assert counted.dropped["error"] == sum(errors.values())
    assert all(pair.chosen.text.startswith("answer") for pair in pairs)


# -- secrets -------------------------------------------------------------------------------------

KEY = "sk-secret-4711"


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY + "\n")


def test_the_key_goes_to_the_server_and_nowhere_else(ask, store, key, capsys, tmp_path):
    """Servers like to repeat the key in their errors; it is hidden there too."""
    tells = Reply(400, {"error": {"message": f"bad prompt for {KEY}"}})
    repeats = Reply(200, answer_to(f"who has the key {KEY}"))
    fates = {"question 1": tells, "question 2": repeats}
    with FaultServer(lambda q, n: fates.get(q) or well(q, n)) as server:
        _, found = ask(server, numbered(3), key_env="MY_KEY")
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    assert found["question 1"].error == "HTTP 400: bad prompt for [key]"
    assert found["question 2"].text == "answer to who has the key [key]"
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for file in tmp_path.rglob("*"):
        assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in "".join(capsys.readouterr())


def test_the_key_is_hidden_in_what_stops_a_run(ask, key):
    reply = Reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with FaultServer(lambda q, n: reply) as server, pytest.raises(UserError) as caught:
        ask(server, numbered(3), key_env="MY_KEY")
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)


def test_a_redirect_does_not_take_the_key_elsewhere(ask, key):
    with FaultServer(well) as other:
        moved = Reply(307, {}, {"Location": f"{other.url}/chat/completions"})
        told = pytest.raises(UserError, match=f"has moved to {other.url}")
        with FaultServer(lambda q, n: moved) as server, told:
            ask(server, numbered(1), key_env="MY_KEY")
        assert not other.headers


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint = Endpoint("http://localhost:1/v1", "model", key_env="MY_KEY")
    with pytest.raises(UserError, match="export MY_KEY="):
        ServedEngine(endpoint, GREEDY)


@pytest.mark.parametrize("value", ["two words", "ключ", "a\nb"])
def test_what_is_no_key_is_refused_without_being_shown(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match="MY_KEY holds is no key") as caught:
        Endpoint("http://localhost:1/v1", "model", key_env="MY_KEY").key()
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "looks like http"),
        ("ftp://host/v1", "looks like http"),
        ("https://me:hunter2@host/v1", "must not hold a password"),
    ],
)
def test_urls_that_are_none(url, message):
    with pytest.raises(UserError, match=message) as caught:
        Endpoint(url, "model")
    assert "hunter2" not in str(caught.value)
