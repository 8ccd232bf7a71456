"""Protects against a version of lm_eval whose private parts are others: it fails here, by name."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytest.importorskip("lm_eval")

from deltalearn.evaluate.harness import lm_eval_private as private
from deltalearn.evaluate.harness.backends import BackendOptions, load

URL = "http://127.0.0.1:9/v1"


def test_the_private_parts_of_lm_eval_are_those_that_are_used(tiny_model):
    """Bodies and readings to the letter; that lm_eval's own are the same is tested at a server."""
    found = version("lm_eval")
    hint = f"lm_eval {found} differs from {private.TRIED}: see lm_eval_private.py"
    chat = load(BackendOptions(kind="openai", model="m", url=URL, concurrency=7))
    talk = chat.apply_chat_template([{"role": "user", "content": "one"}])
    options = {"until": ["x"], "max_gen_toks": 5, "temperature": 0.5, "do_sample": True, "seed": 3}
    assert private.concurrency(chat) == 7, hint
    assert private.generation(chat, talk, options) == {
        "messages": [{"role": "user", "content": "one"}], "model": "m", "max_tokens": 5,
        "temperature": 0.5, "stop": ["x"], "seed": 3,
    }, hint  # fmt: skip
    assert options["max_gen_toks"] == 5, "what is asked is not changed"

    plain = load(
        BackendOptions(kind="openai", model="m", url=URL, tokenizer=str(tiny_model), context=64)
    )
    ids = plain.tok_encode("the quick ")
    sent = private.generation(plain, "the quick ", {"until": ["x"], "max_gen_toks": 5})
    assert (sent["prompt"], sent["max_tokens"], sent["seed"]) == ([ids], 5, 1234), hint
    sent, read = private.likelihood(plain, ("the quick", " dog"))
    assert sent["prompt"] == [plain.tok_encode("the quick dog")] and sent["echo"], hint
    length = len(sent["prompt"][0])
    logprobs = {
        "token_logprobs": [None] + [-0.5] * length,
        "top_logprobs": [None] + [{"a": -0.5}] * length,
    }
    rest = length - len(plain.tok_encode("the quick"))
    assert read({"choices": [{"logprobs": logprobs}]}) == (-0.5 * rest, True), hint


def test_the_bars_that_are_taken_away_are_lm_eval_s():
    import lm_eval.api.task

    assert hasattr(lm_eval.api.task, "tqdm")
    private.without_bars()
    assert list(lm_eval.api.task.tqdm([1, 2], total=2)) == [1, 2]
