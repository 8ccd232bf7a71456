"""The generate stage: which requests there are, which are missing, and the loop that asks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from deltalearn.files import digest
from deltalearn.generate.store import ResponseStore
from deltalearn.lm.decode import Sampling
from deltalearn.lm.locate import ModelFiles
from deltalearn.progress import progress
from deltalearn.records import Prompt, Request, Response


class Engine(Protocol):
    """Answers requests. Plans its own batches, so that it can use what the hardware offers."""

    name: str

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Split requests into batches; a pure function of the requests."""

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """Answer a batch, in order. A request that fails becomes an error response."""


def request_key(model: str, prompt: Prompt, sampling: Sampling, seed: int, sample: int) -> str:
    """Identity of a request: whatever changes the answer is in it, nothing else is."""
    how: dict[str, float | int] = {"max_tokens": sampling.max_tokens}
    if sampling.temperature > 0:
        how |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "sample": sample,
        }
    return digest({"model": model, "messages": list(prompt.messages), "sampling": how})


def plan_requests(
    model: ModelFiles, prompts: Sequence[Prompt], sampling: Sampling, seed: int, samples: int
) -> list[Request]:
    """Every request that one model has to answer, prompt by prompt."""
    return [
        Request(request_key(model.fingerprint, prompt, sampling, seed, sample), prompt, sample)
        for prompt in prompts
        for sample in range(samples)
    ]


def generate(
    store: ResponseStore,
    model: ModelFiles,
    requests: Sequence[Request],
    engine: Engine,
    *,
    title: str,
) -> dict[str, int]:
    """Answer every request that the store does not hold yet; return counts.

    Batches are planned over *all* requests and committed whole: after a crash the remaining
    batches are the very ones an uninterrupted run would have formed, so their answers are too.
    """
    requests = list({r.key: r for r in requests}.values())  # the same one twice is asked once
    have = store.have(r.key for r in requests)
    counts: Counter[str] = Counter(requests=len(requests), cached=len(have), generated=0, errors=0)
    if len(have) < len(requests):
        with progress(f"generate {title}", total=len(requests), unit="tokens") as bar:
            bar.advance(len(have))
            for batch in engine.batches(requests):
                missing = [r for r in batch if r.key not in have]
                if not missing:
                    continue
                responses = engine.answer(missing)
                store.add(
                    responses,
                    model=model.fingerprint,
                    engine=engine.name,
                    prompts=[(r.prompt.id, r.sample) for r in missing],
                )
                counts["generated"] += len(responses)
                bar.advance(len(responses), amount=sum(len(r.token_ids) for r in responses))
    for response in store.get(r.key for r in requests).values():
        counts["errors"] += response.finish_reason == "error"
        counts["truncated"] += response.finish_reason == "length"
        counts["tokens"] += len(response.token_ids)
    return dict(counts)
