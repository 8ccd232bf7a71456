"""Requests: prompts x samples, each with a key that holds all that decides the answer.

Whatever changes an answer is in the key and nothing else is, so that another prompt set, another
model, another engine or another pairing never asks for the same answer twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltalearn.records import Message, Prompt, Request, Sampling, seen_messages
from deltalearn.util.files import canonical_json, digest

NOT_SAMPLING = ("system",)  # of the settings: shows in the messages instead


@dataclass(frozen=True)
class Settings:
    """Settings with which one model is asked.

    Attributes:
        sampling: Choice of tokens.
        seed: Of sampled answers; each request draws by its key.
        samples: Number of answers to a prompt.
        system: A system turn for prompts that have none.
        template: Arguments of the chat template, `enable_thinking` for example.
        day: That the template takes for today; None: it does not ask.
        body: Further fields of a request to a server.
    """

    sampling: Sampling
    seed: int = 0
    samples: int = 1
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    day: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Canonical JSON of all that decides an answer beside model, prompt and sample."""
        sampling = self.sampling
        content: dict[str, Any] = {"max_tokens": sampling.max_tokens}
        if sampling.temperature > 0:
            content |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            content["seed"] = self.seed
        for name in ("system", "template", "day", "body"):
            if value := getattr(self, name):
                content[name] = value if isinstance(value, str) else dict(value)
        return canonical_json(content)


def request_key(model: str, messages: Iterable[Message], settings_json: str, sample: int) -> str:
    """Compute the identity of a request.

    Args:
        model: Identity of the model.
        messages: All that the model sees.
        settings_json: Result of `Settings.key`.
        sample: Number of the answer, from 0. A greedy answer has none: there is only one.

    Returns:
        64 hexadecimal digits.
    """
    settings = {k: v for k, v in json.loads(settings_json).items() if k not in NOT_SAMPLING}
    if "temperature" in settings or "imported" in settings:
        settings["sample"] = sample
    return digest({"model": model, "messages": list(messages), "sampling": settings})


@dataclass(frozen=True)
class RequestPlan:
    """Every request that one model has to answer, prompt by prompt; made anew at each reading.

    Attributes:
        model: Identity of the model.
        prompts: Any iterable that can be read again, a list or a file.
        settings: How the model is asked.
    """

    model: str
    prompts: Iterable[Prompt]
    settings: Settings

    def __iter__(self) -> Iterator[Request]:
        settings_json, system = self.settings.key(), self.settings.system
        for prompt in self.prompts:
            messages = seen_messages(prompt.messages, system)
            for sample in range(self.settings.samples):
                key = request_key(self.model, messages, settings_json, sample)
                yield Request(key, prompt, sample, messages, self.model, settings_json)


SEED_DIGITS = 32  # hexadecimal digits of a request key that seed its sampling: 128 bits
SEED_BITS_SHORT = 31  # of a seed for engines that take a C int


def long_seed(request: Request) -> int:
    """The seed of a request's own random numbers, for a generator that takes 128 bits."""
    return int(request.key[:SEED_DIGITS], 16)


def short_seed(request: Request) -> int:
    """The seed of a request for engines that take a positive 32-bit integer."""
    return int(request.key[:SEED_DIGITS], 16) >> (128 - SEED_BITS_SHORT)
