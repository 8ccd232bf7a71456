"""Many requests at a server, from code that is not asynchronous: replies as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Generic, TypeVar

from deltalearn.openai_api.client import Body, Client, Reply
from deltalearn.openai_api.replies import Fault, Read

GROUP = 1000  # replies at which those gathered are handed over earlier
GRACE = 5.0  # seconds for what is in flight when a run fails

Item = TypeVar("Item")
T = TypeVar("T")
Call = tuple[Body, Read[T]]
Outcome = Reply[T] | Fault
Keep = Callable[[int, Outcome[T]], None]


def ask_all(client: Client, calls: Iterable[Call[T]], keep: Keep[T]) -> None:
    """Ask all of `calls`, as many at a time as the endpoint's concurrency.

    Args:
        client: Not opened; it is closed when this returns.
        calls: What to send and how the reply is read, taken as places become free.
        keep: Is called with the place of a call and its reply or fault as soon as it is there, so
            that what was paid for can be stored before anything else happens. Calls that a stop
            kept from being answered are left out.

    Raises:
        ServerUnavailable: The server refuses everybody or is down; what came is handed over first.
    """
    asked = ask_each(client, enumerate(calls), itemgetter(1))
    with closing(asked):
        for group in asked:
            for (at, _), outcome in group:
                keep(at, outcome)


def ask_each(
    client: Client,
    items: Iterable[Item],
    call: Callable[[Item], Call[T]],
    *,
    gather: float = 0.0,
    look: bool = False,
) -> Generator[list[tuple[Item, Outcome[T]]], None, None]:
    """Yield items with their replies or faults, one event loop in the calling thread.

    Args:
        client: As in `ask_all`.
        items: Read as places become free.
        call: Makes what is sent of an item, and says how the reply is read.
        gather: Seconds over which replies are gathered for one commit; what a kill may cost.
        look: Whether the server is asked what it is before it is asked anything else.

    Raises:
        ServerUnavailable: As in `ask_all`.
    """
    loop = asyncio.new_event_loop()
    run = RequestRunner(client, iter(items), call, gather)
    try:
        loop.run_until_complete(run.start(look))
        while group := loop.run_until_complete(run.gathered()):
            yield group
        run.raise_failure()
    finally:
        loop.run_until_complete(run.close())
        loop.close()


@dataclass(eq=False)
class RequestRunner(Generic[Item, T]):
    """One iteration over the requests: a session, its workers, and what they have done."""

    client: Client
    items: Iterator[Item]
    call: Callable[[Item], Call[T]]
    gather: float
    _done: list[tuple[Item, Outcome[T]]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _workers: list[asyncio.Task[Any]] = field(default_factory=list)

    async def start(self, look: bool) -> None:
        """Open the session and set the workers going."""
        await self.client.open()
        if look:
            await self.client.look()
        for _ in range(self.client.endpoint.concurrency):
            self._workers.append(asyncio.create_task(self._work()))

    async def gathered(self) -> list[tuple[Item, Outcome[T]]]:
        """The next outcomes; none when there will be no more."""
        while not self._done and not all(w.done() for w in self._workers):
            self._news.clear()
            await self._news.wait()
        waiting = [w for w in self._workers if not w.done()]
        if waiting and self.client.cancellation.failure:
            _, late = await asyncio.wait(waiting, timeout=GRACE)
            for worker in late:
                worker.cancel()
        elif waiting and self.gather and len(self._done) < GROUP:
            await asyncio.wait(waiting, timeout=self.gather)
        group, self._done = self._done, []
        return group

    def raise_failure(self) -> None:
        """Raise what ended a worker, or ServerUnavailable if the run ended before its time."""
        for worker in self._workers:
            if not worker.cancelled() and (error := worker.exception()):
                raise error
        self.client.raise_failure()

    async def close(self) -> None:
        """End workers and connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self.client.close()

    async def _work(self) -> None:
        try:
            while not self.client.cancellation.over:
                item = next(self.items, END)
                if item is END:
                    break
                outcome: Outcome[T]
                try:
                    outcome = await self.client.ask(*self.call(item))
                except Fault as fault:
                    if fault.kind == "stopped":
                        break
                    outcome = fault
                self._done.append((item, outcome))
                self._news.set()
        finally:
            self._news.set()


END: Any = object()
