"""Which requests there are: prompts x samples, each with a key that holds what decides the answer.

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

NOT_SAMPLING = ("system",)  # of `how`: what shows in the messages instead


@dataclass(frozen=True)
class Settings:
    """How one model is asked.

    seed: of sampled answers; each request draws by its key. samples: answers to a prompt. system:
    a system turn for prompts that have none. template: arguments of the chat template
    (`enable_thinking`, say). body: further fields of a request to a server.
    """

    sampling: Sampling
    seed: int = 0
    samples: int = 1
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    def how(self) -> str:
        """What decides an answer beside model, prompt and sample, as canonical JSON."""
        sampling = self.sampling
        how: dict[str, Any] = {"max_tokens": sampling.max_tokens}
        if sampling.temperature > 0:
            how |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": self.seed}
        for name in ("system", "template", "body"):
            if value := getattr(self, name):
                how[name] = value if isinstance(value, str) else dict(value)
        return canonical_json(how)


def request_key(model: str, messages: Iterable[Message], how: str, sample: int) -> str:
    """Identity of a request; `messages` are all that the model sees.

    A greedy answer has no sample number: there is only one.
    """
    settings = {k: v for k, v in json.loads(how).items() if k not in NOT_SAMPLING}
    if "temperature" in settings or "imported" in settings:
        settings["sample"] = sample
    return digest({"model": model, "messages": list(messages), "sampling": settings})


@dataclass(frozen=True)
class RequestPlan:
    """Every request that one model has to answer, prompt by prompt; made anew at each reading.

    model: its identity. prompts: any iterable that can be read again, a list or a file.
    """

    model: str
    prompts: Iterable[Prompt]
    settings: Settings

    def __iter__(self) -> Iterator[Request]:
        how, system = self.settings.how(), self.settings.system
        for prompt in self.prompts:
            messages = seen_messages(prompt.messages, system)
            for sample in range(self.settings.samples):
                key = request_key(self.model, messages, how, sample)
                yield Request(key, prompt, sample, messages, self.model, how)


SEED_DIGITS = 32  # hexadecimal digits of a request key that seed its sampling: 128 bits
SEED_BITS_SHORT = 31  # of a seed for engines that take a C int


def long_seed(request: Request) -> int:
    """The seed of a request's own random numbers, for a generator that takes 128 bits."""
    return int(request.key[:SEED_DIGITS], 16)


def short_seed(request: Request) -> int:
    """The seed of a request for engines that take a positive 32-bit integer."""
    return int(request.key[:SEED_DIGITS], 16) >> (128 - SEED_BITS_SHORT)
