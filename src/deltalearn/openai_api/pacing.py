"""How fast a server may be asked, when it is down, and until when: shared by a run's requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

LEAST_FAILURES = 10  # in a row before a server can be called down
LONGEST_ABSENCE = 2.0  # seconds without a connection, before the first answer
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
CHARACTERS = 4  # of a token, to estimate a prompt's tokens before the server has counted them
LOOK = 0.25  # seconds; whoever waits looks so often whether the run goes on


class Cancellation:
    """State of a run that goes on until it fails or somebody stops it."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._failed = asyncio.Event()
        self.failure: str | None = None

    def fail(self, why: str) -> None:
        """End the run; the first reason counts."""
        self.failure = self.failure or why
        self._failed.set()

    @property
    def over(self) -> bool:
        """True if no request may be sent any more."""
        return self.failure is not None or self._stop()

    async def pause(self, seconds: float) -> bool:
        """Wait, but not beyond the end of the run; whether it goes on."""
        end = time.monotonic() + seconds
        while not self.over and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._failed.wait(), min(left, LOOK))
        return not self.over


class RateLimiter:
    """Lets through `rate` units a minute, evenly; None: as they come."""

    def __init__(self, rate: float | None) -> None:
        self._seconds = 60.0 / rate if rate else 0.0
        self._free = 0.0  # when the next unit may go

    def take(self, units: float) -> float:
        """Take a place for `units`; seconds until they may go."""
        if not self._seconds:
            return 0.0
        now = time.monotonic()
        at = max(now, self._free)
        self._free = at + units * self._seconds
        return at - now

    def give_back(self, units: float) -> None:
        """Correct an estimate: so many units were not used (fewer than none: more were)."""
        self._free -= units * self._seconds


class CircuitBreaker:
    """State of a server: if it answers, and until when it wants to be left alone."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._last_good = time.monotonic()
        self._failures = 0
        self._quiet_until = 0.0
        self.answered = False  # anything, ever

    def good(self) -> None:
        """A request was answered, if only with a refusal."""
        self._last_good = time.monotonic()
        self._failures = 0
        self.answered = True

    def bad(self) -> None:
        """A try ended in a timeout, a lost connection or a server error."""
        self._failures += 1

    def good_since(self, moment: float) -> bool:
        """True if any request was answered since `moment` (monotonic seconds)."""
        return self._last_good >= moment

    @property
    def down(self) -> bool:
        """Nothing but failures for too long."""
        silent = time.monotonic() - self._last_good
        return self._failures >= LEAST_FAILURES and silent > self._patience

    @property
    def absent(self) -> bool:
        """Nobody there for some seconds, and nobody ever was."""
        silent = time.monotonic() - self._last_good
        return not self.answered and self._failures >= 2 and silent > LONGEST_ABSENCE

    def quiet(self, seconds: float) -> None:
        """Nobody asks for so long."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)

    def quiet_left(self) -> float:
        """Seconds until the server may be asked, for each a little later than for the other."""
        return max(0.0, self._quiet_until - time.monotonic()) * random.uniform(1.0, 1.1)


def backoff(tries: int, first: float) -> float:
    """Seconds before the next try: exponential with full jitter, so that retries spread."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, first * 2 ** (tries - 1))
