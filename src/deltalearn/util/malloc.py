"""What the C library does with memory that is freed: keep it, for a process that tunes on a CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Let large freed blocks be used again instead of going back to the kernel.

    By default glibc maps every large block anew, and the kernel clears its pages one by one as they
    are touched: a seventh of a training step on a CPU (docs/log.md). The price is that the process
    keeps its peak. Returns whether the C library took it; others than glibc need nothing or have
    no such switch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
