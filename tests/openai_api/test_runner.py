"""Protects asking many requests from plain code: each reply is handed over as it comes, once, and
what ends the run is raised when all that came is handed over.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from helpers.fault_server import FAULTS, FaultServer, Reply, answer_to, well

from deltalearn.openai_api import Endpoint
from deltalearn.openai_api.client import Client, ServerUnavailable
from deltalearn.openai_api.replies import Fault
from deltalearn.openai_api.runner import ask_all


def content(value: Any) -> str:
    return value["choices"][0]["message"]["content"]


def calls(count: int, read=content):
    for number in range(count):
        question = {"role": "user", "content": f"question {number}"}
        yield {"model": "model", "messages": [question]}, read


def client(server: FaultServer, stop=lambda: False, **changes: Any) -> Client:
    given = {"wait": 0.005, "timeout": 20.0, "patience": 1.0, "tries": 2, **changes}
    return Client(Endpoint(server.url, "model", **given), stop=stop)


def test_each_reply_comes_once_with_its_place_and_faults_are_typed():
    fates = {"question 1": "400", "question 2": "html", "question 3": "500"}
    found: dict[int, Any] = {}
    with FaultServer(lambda q, n: fates.get(q) or well(q, n)) as server:
        ask_all(client(server), calls(8), lambda at, outcome: found.setdefault(at, outcome))
    assert sorted(found) == list(range(8))
    faults = {at: f.kind for at, f in found.items() if isinstance(f, Fault)}
    assert faults == {1: "refused", 2: "malformed", 3: "server"}
    assert (found[1].tries, found[3].tries) == (1, 2)
    for at in (0, 4, 5, 6, 7):
        assert (found[at].value, found[at].tries) == (f"answer to question {at}", 1)


@pytest.mark.slow
def test_a_reply_is_handed_over_while_others_are_still_asked():
    def slow_second(question: str, attempt: int) -> Reply:
        return Reply(200, answer_to(question), delay=2.0 if question == "question 1" else 0.0)

    times: list[float] = []
    with FaultServer(slow_second) as server:
        ask_all(client(server), calls(2), lambda at, outcome: times.append(time.monotonic()))
    assert times[1] - times[0] > 1.0


def test_a_reply_that_cannot_be_read_is_not_asked_again():
    def strict(value: Any) -> str:
        raise ValueError("not this")

    found: list[Any] = []
    with FaultServer(well) as server:
        ask_all(client(server), calls(1, strict), lambda at, outcome: found.append(outcome))
    assert (found[0].kind, found[0].tries) == ("malformed", 1)


def test_once_stopped_nothing_more_is_asked_and_what_is_in_flight_is_kept():
    found: list[int] = []
    with FaultServer(well) as server:
        asked = client(server, lambda: len(found) >= 5, concurrency=3)
        ask_all(asked, calls(100), lambda at, outcome: found.append(at))
        assert len(found) == sum(server.asked.values()) <= 5 + 3 + 2


@pytest.mark.parametrize("fate", [Reply(401, {"error": {"message": "no key"}}), "503"])
def test_a_server_that_answers_nobody_is_unavailable_and_what_came_is_kept(fate):
    def then_gone(question: str, attempt: int):
        return well(question, attempt) if int(question.split()[1]) < 20 else fate

    found: list[int] = []
    with FaultServer(then_gone) as server:
        server.models = FAULTS["503"]
        with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1.*\(model\): "):
            ask_all(
                client(server, concurrency=4),
                calls(200),
                lambda at, outcome: found.append(at),
            )
    assert set(range(20)) <= set(found)


def test_what_the_caller_raises_ends_the_asking():
    def breaks(at: int, outcome: Any) -> None:
        raise KeyboardInterrupt

    with FaultServer(well) as server:
        with pytest.raises(KeyboardInterrupt):
            ask_all(client(server, concurrency=2), calls(100), breaks)
        assert sum(server.asked.values()) <= 4
