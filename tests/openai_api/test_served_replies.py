"""Protects what a server's reply means, and how fast and how long a server is asked.

Every reply is an answer, a fault to try again, one to record, or the end of the run; whatever a
server writes into it, nothing is left that cannot be stored.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from helpers.fault_server import answer_to

from deltalearn.openai_api import replies
from deltalearn.openai_api.errors import hide, retry_after
from deltalearn.openai_api.pacing import Cancellation, CircuitBreaker, RateLimiter, backoff
from deltalearn.openai_api.replies import Fault, chat_answer

# -- what a reply means --------------------------------------------------------------------------


def read_reply(status: int, headers, content: bytes):
    return replies.read_reply(status, headers, content, chat_answer)[0]


def body(value) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("stop", "stop"), ("eos_token", "stop"), ("length", "length"), ("max_tokens", "length")],
)
def test_finish_reasons_of_many_servers(reason, kept):
    answer = read_reply(200, {}, body(answer_to("q", finish_reason=reason)))
    assert (answer.text, answer.finish_reason) == ("answer to q", kept)
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 5)


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (400, "refused", False),
        (413, "refused", False),
        (422, "refused", False),
        (401, "fatal", False),
        (402, "fatal", False),
        (403, "fatal", False),
        (404, "fatal", False),
        (408, "server", True),
        (429, "rate_limit", True),
        (500, "server", True),
        (503, "server", True),
        (529, "server", True),
        (599, "server", True),
    ],
)
def test_statuses(status, kind, retry):
    with pytest.raises(Fault) as caught:
        read_reply(status, {}, body({"error": {"message": "why"}}))
    assert (caught.value.kind, caught.value.retry) == (kind, retry)
    assert caught.value.reason.startswith(f"HTTP {status}: why")


def test_a_used_up_account_is_no_rate_limit():
    """OpenAI says 429 to both; waiting helps with one of them only."""
    reply = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    with pytest.raises(Fault) as caught:
        read_reply(429, {}, body(reply))
    assert caught.value.kind == "fatal" and "add credit" in caught.value.reason


TOOL = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("content", "most"),
    [
        # What a proxy or a broken connection puts in its place may be gone the next time.
        (b"<html>welcome</html>", 2),
        (b'{"choices": [{"mess', 2),
        (b"", 2),
        (answer_to("q", finish_reason="error"), 2),
        (answer_to("q", finish_reason="abort"), 2),
        # What was made, and paid for, is made again.
        (answer_to("q", message=TOOL, finish_reason="tool_calls"), None),
        (answer_to("q", message={"content": None}), None),
        (answer_to("q", message={"content": 7}), None),
        (answer_to("q", message={"content": [{"type": "image_url", "image_url": {}}]}), None),
        (answer_to("q", finish_reason="banana"), None),
        (answer_to("q", finish_reason=None), None),
        ({"id": "x", "choices": []}, None),
        ({"id": "x"}, None),
        ([], None),
        ("fine", None),
    ],
)
def test_a_reply_that_is_no_text_is_not_paid_for_again_and_again(content, most):
    with pytest.raises(Fault) as caught:
        read_reply(200, {}, content if isinstance(content, bytes) else body(content))
    fault = caught.value
    assert (fault.kind, fault.retry, fault.most) == ("malformed", most is not None, most)


def test_an_error_under_a_good_status_is_what_it_says():
    """As routers pass on what happened behind them."""
    for code, kind, retry in ((429, "rate_limit", True), (502, "server", True),
                              (400, "refused", False), (None, "refused", False)):  # fmt: skip
        with pytest.raises(Fault) as caught:
            read_reply(200, {}, body({"error": {"message": "why", "code": code}}))
        assert (caught.value.kind, caught.value.retry) == (kind, retry)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": [{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}]},
         "Paris", ""),
        ({"content": [{"type": "output_text", "text": "Paris", "annotations": []}]}, "Paris", ""),
        ({"content": ["Paris"]}, "Paris", ""),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No.", ""),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                      {"type": "text", "text": "Paris"}]}, "Paris", "hm"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Paris"},
                      {"type": "reference", "reference_ids": [1]}]}, "Paris", "hm"),
        ({"content": [{"type": "thinking", "thinking": "hm"}]}, "", "hm"),
        ({"content": "Paris", "reasoning": "hm"}, "Paris", "hm"),
        ({"content": "Paris", "reasoning_content": [{"type": "text", "text": "hm"}]},
         "Paris", "hm"),
        ({"content": "Paris", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
         "Paris", "hm"),
    ],
)  # fmt: skip
def test_content_in_parts_is_read(message, text, reasoning):
    found = read_reply(200, {}, body(answer_to("q", message=message)))
    assert (found.text, found.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ({"message": "The model `x` does not exist", "code": "model_not_found"}, "no such model"),
        ({"message": "model 'x' not found, try pulling it first"}, "no such model"),
        ({"message": "API key not valid. Please pass a valid API key."}, "check the variable"),
        ({"message": "no", "code": "invalid_api_key"}, "check the variable"),
        ("Unexpected endpoint or method. (POST /chat/completions)", "check its URL"),
    ],
)
def test_what_everybody_would_meet_is_known_under_a_status_of_one(message, remedy):
    with pytest.raises(Fault) as caught:
        read_reply(400, {}, body({"error": message}))
    assert caught.value.kind == "fatal" and remedy in caught.value.reason


def test_a_filtered_answer_is_an_error_of_its_own():
    with pytest.raises(Fault) as caught:
        read_reply(200, {}, body(answer_to("q", finish_reason="content_filter")))
    assert (caught.value.kind, caught.value.retry) == ("filtered", False)


def test_a_refusal_of_the_model_is_an_answer():
    refusal = {"content": None, "refusal": "I will not"}
    answer = read_reply(200, {}, body(answer_to("q", message=refusal)))
    assert answer.text == "I will not"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, 0.0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date():
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert retry_after({"Retry-After": date}) == pytest.approx(30, abs=2)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_the_end_and_says_where_to(status):
    headers = {"Location": "https://other.example:81/v1/chat/completions?token=x"}
    with pytest.raises(Fault) as caught:
        read_reply(status, headers, b"")
    assert caught.value.kind == "fatal"
    assert "moved to https://other.example:81/v1/chat/completions; mend" in caught.value.reason


@pytest.mark.parametrize("location", ["", "/elsewhere", "http://[", None])
def test_a_redirect_to_nowhere_is_the_end_as_well(location):
    with pytest.raises(Fault) as caught:
        read_reply(308, {} if location is None else {"Location": location}, b"")
    assert "the server has moved; mend the URL" in caught.value.reason


@pytest.mark.parametrize(
    ("written", "kept"),
    [("ok \ud83d", "ok \ufffd"), ("\ude00", "\ufffd"), ("\ud83d\ude00 \x00", "\U0001f600 \x00")],
)
def test_halves_of_characters_are_replaced(written, kept):
    """JSON can write them, and no database takes them."""
    message = {"content": written, "reasoning_content": written}
    answer = read_reply(200, {}, body(answer_to("q", message=message)))
    assert (answer.text, answer.reasoning) == (kept, kept)
    with pytest.raises(Fault) as caught:
        read_reply(400, {}, body({"error": {"message": written}}))
    caught.value.reason.encode()


@pytest.mark.parametrize("number", [2**64, -1, 1.5, "7", None])
def test_numbers_that_are_none_are_unknown(number):
    reply = answer_to("q") | {"usage": {"prompt_tokens": number, "completion_tokens": 5}}
    answer = read_reply(200, {}, body(reply))
    assert (answer.prompt_tokens, answer.completion_tokens) == (None, 5)


@pytest.mark.parametrize("ids", [[1, 2**32], [-1], ["a"], [1.0]])
def test_token_ids_that_are_none_make_a_malformed_reply(ids):
    with pytest.raises(Fault) as caught:
        read_reply(200, {}, body(answer_to("q", token_ids=ids)))
    assert (caught.value.kind, caught.value.retry) == ("malformed", False)


def test_reasoning_without_an_answer_is_an_empty_answer():
    """To ask again would bring the same."""
    message = {"content": None, "reasoning_content": "hm"}
    answer = read_reply(200, {}, body(answer_to("q", message=message)))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "hm", "stop")


# -- the pace ------------------------------------------------------------------------------------


def test_backoff_doubles_with_jitter_up_to_a_minute():
    for tries, most in ((1, 1.0), (2, 2.0), (4, 8.0), (20, 60.0)):
        waits = [backoff(tries, 1.0) for _ in range(200)]
        assert most / 2 <= min(waits) < max(waits) <= most
        assert len(set(waits)) > 100


def test_health_is_down_only_after_failures_without_an_answer_for_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("deltalearn.openai_api.pacing.time.monotonic", lambda: now[0])
    health = CircuitBreaker(patience=60)
    now[0] = 100
    assert not health.down, "silence alone is no failure: nothing may have been asked"
    for _ in range(20):
        health.bad()
    assert health.down
    health.good()
    assert not health.down


def test_pace_gives_places_one_after_the_other(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("deltalearn.openai_api.pacing.time.monotonic", lambda: now[0])
    pace = RateLimiter(60)
    assert [pace.take(1), pace.take(3), pace.take(1)] == pytest.approx([0, 1, 4])
    pace.give_back(2)
    now[0] = 101
    assert pace.take(1) == pytest.approx(2)  # at 105, less the 2 given back, less the second gone
    assert [RateLimiter(None).take(10**9) for _ in range(3)] == [0, 0, 0]


def test_a_pause_ends_with_the_run():
    """Ctrl-C, and a failure that somebody else met, end a wait of an hour."""

    async def waited(course: Cancellation, end) -> list[bool]:
        pauses = [asyncio.create_task(course.pause(3600)) for _ in range(3)]
        await asyncio.sleep(0.01)
        end()
        return await asyncio.gather(*pauses)

    asked: list[bool] = []
    stopped = Cancellation(lambda: bool(asked))
    assert asyncio.run(waited(stopped, lambda: asked.append(True))) == [False] * 3
    failing = Cancellation(lambda: False)
    assert asyncio.run(waited(failing, lambda: failing.fail("no"))) == [False] * 3
    failing.fail("yes")
    assert failing.failure == "no" and failing.over
    assert asyncio.run(Cancellation(lambda: False).pause(0.01))


# -- secrets in replies --------------------------------------------------------------------------


def test_a_key_is_hidden_before_anything_is_cut():
    """At 300 characters half of it would be left; some write JSON with escaped slashes."""
    key = "sk-ab/cd" * 5
    said = json.dumps({"error": {"message": "x" * 290 + key}}).encode()
    for content in (said, said.replace(b"/", b"\\/")):
        with pytest.raises(Fault) as caught:
            read_reply(400, {}, hide(content, [key]))
        assert "sk-" not in caught.value.reason and caught.value.reason.endswith("x[key]")
    assert hide(said, []) == said
