"""Every touch of a private part of lm_eval, in one place.

lm_eval asks for a whole group of requests at a time and gives back all of it or nothing. To ask one
by one, what it would send and how it reads a reply is taken from the parts it has for that. A
version that has changed them fails `tests/evaluate/harness/test_lm_eval_private.py`, by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

TRIED = ("0.4.13",)  # versions of lm_eval with which the tests below this were green

Read = Callable[[Any], Any]


def concurrency(model: Any) -> int:
    """Requests in flight that a server's model was made for."""
    return max(1, model._concurrent)


def generation(model: Any, context: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Make the body by which lm_eval's model asks a server to go on with `context`."""
    messages = [context]
    if model.tokenized_requests:
        room = model.max_length - options.get("max_gen_toks", model._max_gen_toks)
        messages = [model.tok_encode(context, add_special_tokens=model.add_bos_token)[-room:]]
    options = copy.deepcopy(options)  # lm_eval takes out of it what it has read
    return model._create_payload(
        model.create_message(messages), generate=True, gen_kwargs=options, seed=model._seed
    )


def likelihood(model: Any, request: tuple[str, str]) -> tuple[dict[str, Any], Read]:
    """Make the body that asks for the log-likelihood of a continuation, and how it is read."""
    ids, lengths, _ = model.batch_loglikelihood_requests(
        [[(request, *model._encode_pair(*request))]]
    )
    body = model._create_payload(model.create_message(ids), generate=False, seed=model._seed)
    return body, lambda value: model.parse_logprobs(
        outputs=one_choice(value), tokens=ids, ctxlens=lengths
    )[0]


def one_choice(value: Any) -> dict[str, Any]:
    """A reply of one choice, numbered as lm_eval's readers want it."""
    return {"choices": [{**value["choices"][0], "index": 0}]}


def without_bars() -> None:
    """Take lm_eval's own progress bars away, for this process.

    By its modules: TQDM_DISABLE in the environment makes vLLM divide by a time of zero.
    """
    import lm_eval.api.task

    lm_eval.api.task.tqdm = lambda iterable, **_: iterable
