"""The generate stage: it has missing requests answered and stores every answer that comes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from deltalearn.recipe import PricesSpec
from deltalearn.records import Request, Response
from deltalearn.responses.store import ResponseStore
from deltalearn.util.progress import Bar, progress
from deltalearn.util.signals import SafeStop

WINDOW = 8192  # requests looked up, and planned by an engine, at a time


@dataclass(frozen=True)
class Window:
    """Some of a model's requests in their order.

    Attributes:
        requests: All of them.
        missing: Keys of those that are still to answer.
    """

    requests: list[Request]
    missing: frozenset[str]

    def wanted(self) -> list[Request]:
        """The requests still to answer."""
        return [r for r in self.requests if r.key in self.missing]


Stop = Callable[[], bool]


class Engine(Protocol):
    """Answers requests; plans its own batches and its own concurrency."""

    name: str  # with its version, as it is kept beside every answer

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Answer all that is missing, in any order.

        A request that fails becomes an error response.

        Args:
            windows: Requests, a bounded number at a time.
            stop: Once it returns True no further request is begun; those in flight are finished.

        Yields:
            Lists of responses, each to be stored whole.

        Raises:
            UserError: If no request at all can be answered.
        """

    def close(self) -> None:
        """Give back what the engine holds: memory, processes, connections."""


def generate(
    store: ResponseStore,
    requests: Iterable[Request],
    engine: Callable[[], Engine],
    *,
    title: str,
    prices: PricesSpec | None = None,
    retry_errors: bool = False,
) -> dict[str, int | float]:
    """Answer every request that the store does not hold yet.

    Ctrl-C finishes what is in flight and raises `Stopped`.

    Args:
        store: Where the answers are and go.
        requests: Read several times: to count, to answer, to count again.
        engine: Makes the engine; called only if something is missing.
        title: Name of the model, for the progress bar.
        prices: Adds the `cost` of what was generated now to the counts.
        retry_errors: Ask again what ended in an error in an earlier run; otherwise it counts as
            answered.

    Returns:
        Counts: requests, cached, generated, errors, truncated, tokens, and with_reasoning and cost
        where there are any.

    Raises:
        UserError: If no request at all can be answered.
    """
    total, missing = survey(store, requests, retry_errors=retry_errors)
    counts = _Counts(requests=total, cached=total - missing)
    if missing:
        made = engine()
        try:
            with (
                SafeStop() as stop,
                progress(f"generate {title}", total=total, done=counts["cached"], unit="tokens")
                as bar,
            ):  # fmt: skip
                _answer(store, requests, made, counts, bar, lambda: stop.asked, prices)
                if stop.asked and counts["generated"] < missing:
                    done = counts["cached"] + counts["generated"]
                    stop.leave(f"generate {title}: stopped, {done:,} of {total:,} requests done")
        finally:
            made.close()
    return counts.of_all(store, requests, prices)


def survey(
    store: ResponseStore, requests: Iterable[Request], *, retry_errors: bool = False
) -> tuple[int, int]:
    """Count the requests and those still to answer.

    Two equal requests of one window count once.

    Args:
        store: Where the answers are.
        requests: What a model is asked.
        retry_errors: Forget the requests' errors first, so that those are to answer too.

    Returns:
        (number of distinct requests, number to answer).
    """
    total = missing = 0
    for window in _windows(store, requests, retry_errors):
        total += len(window.requests)
        missing += len(window.missing)
    return total, missing


def fingerprint(store: ResponseStore, requests: Iterable[Request]) -> str:
    """Hash the answers that the store has to `requests`: all that pairs are made of.

    Two runs that were answered the same have the same one, whenever and by whatever engine.

    Args:
        store: Where the answers are.
        requests: What a model is asked.

    Returns:
        64 hexadecimal digits.
    """
    hashed, source = hashlib.sha256(), iter(requests)
    while part := list(itertools.islice(source, WINDOW)):
        found = store.get(r.key for r in part)
        for r in filter(None, (found.get(request.key) for request in part)):
            content = [r.key, r.reasoning, r.text, r.finish_reason, r.tokens]
            hashed.update(json.dumps(content).encode())
    return hashed.hexdigest()


def failed(key: str, prompt_tokens: int, fault: str, reason: str, *, tries: int = 1) -> Response:
    """Make a response with finish_reason "error", of a kind `fault`, for a reason in words."""
    return Response(
        key, "", (), "error", prompt_tokens, reason, completion_tokens=0, fault=fault, tries=tries
    )


def _windows(
    store: ResponseStore, requests: Iterable[Request], forget_errors: bool = False
) -> Iterator[Window]:
    """The requests, a bounded number at a time. The same one twice in a window is asked once."""
    source = iter(requests)
    while part := list(itertools.islice(source, WINDOW)):
        distinct = {r.key: r for r in part}
        if forget_errors:
            store.drop_errors(distinct)
        have = store.have(distinct)
        yield Window(list(distinct.values()), frozenset(distinct.keys() - have))


def _answer(
    store: ResponseStore,
    requests: Iterable[Request],
    engine: Engine,
    counts: _Counts,
    bar: Bar,
    stop: Stop,
    prices: PricesSpec | None,
) -> None:
    asked: dict[str, Request] = {}

    def windows() -> Iterator[Window]:
        for window in _windows(store, requests):
            # A conversation that came in an earlier window too may be in flight still.
            new = Window(window.requests, window.missing - asked.keys())
            asked.update((r.key, r) for r in new.wanted())
            yield new

    for group in engine.answers(windows(), stop):
        store.add([(asked[r.key], r) for r in group], engine=engine.name)
        for response in group:
            del asked[response.key]
        counts.note(group)
        numbers = ((counts[name], name) for name in ("cached", "failed"))
        shown = [f"{number:,} {name}" for number, name in numbers if number]
        shown += [f"cost {counts.cost(prices):.2f}"] if prices else []
        bar.advance(len(group), amount=sum(r.tokens for r in group), note="  ".join(shown))


class _Counts(Counter[str]):
    """Counts of a run of the stage."""

    def note(self, group: list[Response]) -> None:
        """Add what came just now."""
        self["generated"] += len(group)
        for response in group:
            self["failed"] += response.finish_reason == "error"
            self["new_prompt_tokens"] += response.prompt_tokens
            self["new_tokens"] += response.tokens

    def cost(self, prices: PricesSpec | None) -> float:
        """What was generated now cost."""
        return prices.of(self["new_prompt_tokens"], self["new_tokens"]) if prices else 0.0

    def of_all(
        self, store: ResponseStore, requests: Iterable[Request], prices: PricesSpec | None
    ) -> dict[str, int | float]:
        """The counts of all requests, those answered earlier too."""
        found: Counter[str] = Counter()
        source = iter(requests)
        while keys := {r.key for r in itertools.islice(source, WINDOW)}:
            for response in store.get(keys).values():
                found["errors"] += response.finish_reason == "error"
                found["truncated"] += response.finish_reason == "length"
                found["with_reasoning"] += bool(response.reasoning)
                found["tokens"] += response.tokens
        names = ("requests", "cached", "generated")
        result: dict[str, int | float] = {name: self[name] for name in names}
        result |= {name: found[name] for name in ("errors", "truncated", "tokens")}
        if found["with_reasoning"]:
            result["with_reasoning"] = found["with_reasoning"]
        return {**result, "cost": round(self.cost(prices), 4)} if prices else result
