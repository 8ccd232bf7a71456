"""The processes that a launcher (torchrun, accelerate launch) starts, and who of them speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from deltalearn.errors import UserError

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints (there may be no other)."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """The processes of a launcher; alone, every method is a plain call."""

    def __init__(self, device: str) -> None:
        self.several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.first = is_first_process()
        if self.several:
            import torch
            from accelerate import PartialState

            no_gpu = device == "auto" and not torch.accelerator.is_available()
            PartialState(cpu=device == "cpu" or no_gpu)

    def by_first(self, work: Callable[[], T]) -> T:
        """Let the first process do `work` and give all of them its result, or its UserError."""
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except UserError as error:
                outcome[1] = error
        if self.several:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Every process does `work`, the others once the first has left its files for them."""
        done: list[T] = []
        self.by_first(lambda: done.append(work()))
        return done[0] if done else work()

    def end(self) -> None:
        """Leave together: a process that ends while others still hold it to be there may abort."""
        if self.several:
            from accelerate import PartialState

            state = PartialState()
            state.wait_for_everyone()
            state.destroy_process_group()
            PartialState._reset_state()
