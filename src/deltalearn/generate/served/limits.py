"""How fast a server may be asked, and when it is down: state shared by all requests of a run."""

from __future__ import annotations

import asyncio
import random
import time

LEAST_FAILURES = 10  # in a row before a server can be called down
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more


class Pace:
    """Lets through `rate` units a minute, evenly; None: as they come."""

    def __init__(self, rate: float | None) -> None:
        self._seconds = 60.0 / rate if rate else 0.0
        self._free = 0.0  # when the next unit may go

    async def take(self, units: float) -> None:
        """Wait until `units` may go."""
        if self._seconds:
            now = time.monotonic()
            at = max(now, self._free)
            self._free = at + units * self._seconds
            if at > now:
                await asyncio.sleep(at - now)

    def give_back(self, units: float) -> None:
        """Correct an estimate: so many units were not used (fewer than none: more were)."""
        self._free -= units * self._seconds


class Health:
    """Whether the server answers, and until when it wants to be left alone."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._last_good = time.monotonic()
        self._failures = 0
        self._quiet_until = 0.0

    def good(self) -> None:
        """A request was answered, if only with a refusal."""
        self._last_good = time.monotonic()
        self._failures = 0

    def bad(self) -> None:
        """A try ended in a timeout, a lost connection or a server error."""
        self._failures += 1

    def good_since(self, moment: float) -> bool:
        """Whether any request was answered since `moment` (monotonic seconds)."""
        return self._last_good >= moment

    @property
    def down(self) -> bool:
        """Nothing but failures for too long."""
        silent = time.monotonic() - self._last_good
        return self._failures >= LEAST_FAILURES and silent > self._patience

    def quiet(self, seconds: float) -> None:
        """Nobody asks for so long."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Wait until the server may be asked."""
        while (left := self._quiet_until - time.monotonic()) > 0:
            # All wake at about the same time, so each a little later than the other.
            await asyncio.sleep(left * random.uniform(1.0, 1.1))


def backoff(tries: int, first: float) -> float:
    """Seconds before the next try: exponential with full jitter, so that retries spread."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, first * 2 ** (tries - 1))
