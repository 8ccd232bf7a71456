"""The system calls that no program gets: a seccomp filter in the kernel's own form.

Namespaces hide the host; this closes what is left. Without fork and clone a program is one thread
of one process, which bounds everything that rlimits count per process, whoever starts the sandbox
(RLIMIT_NPROC does not bind root). Without `socket` there is no network even where a namespace would
leave some (vsock). The rest are doors into the kernel that testing a function has no use for.

A refused call fails with EPERM; one newer than this list is "not implemented" (ENOSYS).
"""

from __future__ import annotations

import csv
import errno
import platform
import struct
from pathlib import Path

from deltalearn.errors import UserError

# Name: number on x86_64, on aarch64 (None: not there). Source: Linux,
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
REFUSED: dict[str, tuple[int, int | None]] = {
    row["name"]: (int(row["x86_64"]), int(row["aarch64"]) if row["aarch64"] else None)
    for row in csv.DictReader(Path(__file__).with_name("syscalls.csv").read_text().splitlines())
}
NEWEST = 462  # mseal, Linux 6.10; the last number this list was made for, the same everywhere

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

LOAD, EQUAL, GREATER, RETURN = 0x20, 0x15, 0x25, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGT|K, RET|K
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
KILL, ERROR, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000  # SECCOMP_RET_*


def program(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`, for this or another machine's name.

    UserError on a machine whose numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise UserError(
            f"the sandbox has no list of system calls for {machine}, only for "
            f"{' and '.join(MACHINES)}: score the benchmarks with generated code on such a machine"
        )
    column, architecture = MACHINES[machine]
    numbers = [n for pair in REFUSED.values() if (n := pair[column]) is not None]
    # Jumps count the instructions to skip; the four returns stand at the end, in this order.
    returns = [ALLOW, ERROR | errno.EPERM, ERROR | errno.ENOSYS, KILL]
    ahead = len(numbers)
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 0, ahead + 5, architecture),  # 32-bit calls have numbers of their own: KILL
        (LOAD, 0, 0, NUMBER),
        (GREATER, ahead + 2, 0, NEWEST),  # so is x32's bit: ENOSYS
    ]
    for done, number in enumerate(numbers, 1):
        lines.append((EQUAL, ahead - done + 1, 0, number))
    lines += [(RETURN, 0, 0, value) for value in returns]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
