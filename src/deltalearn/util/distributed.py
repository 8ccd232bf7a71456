"""The processes that a launcher (torchrun, accelerate launch) starts, and who of them speaks."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from deltalearn.errors import UserError

T = TypeVar("T")
A_YEAR = timedelta(days=365)  # for the others to wait while the first generates
OF_A_LAUNCHER = re.compile(
    r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_(RANK|NAME)|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|ACCELERATE)_.*"
)


def is_first_process() -> bool:
    """True if this process is the one that writes and prints (there may be no other)."""
    return os.environ.get("RANK", "0") == "0"


def several_processes() -> bool:
    """True if a launcher started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_here() -> int:
    """Count the processes that a launcher started on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def own_environment() -> dict[str, str]:
    """The environment of a process that works by itself, whoever launched this one.

    Told of a launcher's processes, a child takes itself for one of them: vLLM waits forever at the
    launcher's store for the processes of its own group.
    """
    return {k: v for k, v in os.environ.items() if not OF_A_LAUNCHER.fullmatch(k)}


@contextmanager
def alone() -> Iterator[None]:
    """Let what is started in the block, by whatever library, have `own_environment`."""
    told = {k: v for k, v in os.environ.items() if OF_A_LAUNCHER.fullmatch(k)}
    for name in told:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(told)


def free_gpus() -> None:
    """Give back the memory that torch keeps of what is not used any more."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no GPU was used


class Processes:
    """The processes of a launcher; alone, every method is a plain call.

    What they tell one another here goes over the CPU, in a group of its own that waits as long as
    it takes; training has the launcher's group and its time limit.
    """

    def __init__(self, device: str) -> None:
        self.several = several_processes()
        self.first = is_first_process()
        self._together = False  # whether all are at the same job, and an error is every one's
        if self.several:
            import torch
            from accelerate import PartialState

            no_gpu = device == "auto" and not torch.accelerator.is_available()
            PartialState(cpu=device == "cpu" or no_gpu)
            self._group = torch.distributed.new_group(backend="gloo", timeout=A_YEAR)

    def lead(self, work: Callable[[], T], follow: Callable[[Any], None]) -> T | None:
        """The first process does `work`; the others `follow` every job that it sends meanwhile.

        Returns what `work` did, None in the others. A UserError of the first is every process's,
        and so is that it was asked to stop.
        """
        if not self.several:
            return work()
        result = None
        if self.first:
            try:
                result = work()
            except (UserError, KeyboardInterrupt) as error:
                if not self._together:
                    self._tell((None, error))
                raise
            self._tell((None, None))
        else:
            while (job := self._next_job()) is not None:
                follow(job)
        self._end()
        return result

    def send(self, job: Any) -> None:
        """Give all others a job, which this process does as well until it calls `sent_is_done`."""
        if self.several:
            self._tell((job, None))
            self._together = True

    def sent_is_done(self) -> None:
        """The others wait for the next job again."""
        self._together = False

    def by_first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work` and give all of them its result, or its UserError."""
        outcome: tuple[Any, UserError | None] = None, None
        if self.first:
            try:
                outcome = work(), None
            except UserError as error:
                outcome = None, error
        result, refusal = self._tell(outcome)
        if refusal is not None:
            raise refusal
        return result

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Every process does `work`, the others once the first has left its files for them."""
        done: list[T] = []
        self.by_first(lambda: done.append(work()))
        return done[0] if done else work()

    def _tell(self, value: T) -> T:
        """The first process's `value`, in all of them."""
        if not self.several:
            return value
        from torch.distributed import broadcast_object_list

        told = [value]
        broadcast_object_list(told, group=self._group)
        return told[0]

    def _next_job(self) -> Any:
        """Wait for a job; None when there is no more. Who waits has nothing to save when asked to
        stop, and Python could not be asked: it waits outside of Python."""
        before = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM)}
        job, error = self._tell((None, None))
        for number, handler in before.items():
            signal.signal(number, handler)
        if error is not None:
            raise error
        return job

    def _end(self) -> None:
        """Leave together: a process that ends while others still hold it to be there may abort."""
        from accelerate import PartialState

        state = PartialState()
        state.wait_for_everyone()
        state.destroy_process_group()
        PartialState._reset_state()


def reset_precision() -> None:
    """Let the next `Accelerator` have its own precision; accelerate keeps one for the process.

    Its `_reset_state` is private, here and in `Processes`; tried with accelerate 1.15.0.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
