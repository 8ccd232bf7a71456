"""A bound on what a block of a test may compute: hostile text must not take hours."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Ends the block, and fails the test, once this process has computed for so long.

    Not a measurement: bounds are ten times and more of what is needed. Processor time, as a busy
    machine makes everything late. A regular expression notices the signal too.
    """
    late = []

    def give_up(*_: object) -> None:
        late.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except TimeoutError:
        if not late:
            raise
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert not late, f"not done after {seconds} s of processor time"
