"""Programs in a bubblewrap sandbox: namespaces of their own, and a root with next to nothing.

Inside there are the interpreter and the system's libraries, read-only and at the paths they have
outside; /packages; /tmp, a tmpfs of limited size; /dev with null, zero and the two random devices.
There is no /proc, /sys, /home or /usr/bin, and of /etc only the loader's cache: nothing of the host
is readable that does not come with Python. (Without /proc it also works in containers that forbid
to mount one.)

The program is process 1 of its own process namespace: when it is dead, all of it is dead.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.sandbox import seccomp
from deltalearn.evaluate.sandbox.interpreter import ENVIRONMENT, Interpreter
from deltalearn.evaluate.sandbox.outcome import Limits
from deltalearn.evaluate.sandbox.watch import Process, Streams, cpu_of

PACKAGES = "/packages"
DEVICES = ("null", "zero", "random", "urandom")
# Shared libraries, on merged and older layouts.
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
NAMESPACES = [
    "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534",  # nobody
    "--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1",
    "--cap-drop", "ALL", "--clearenv",
    *(word for pair in ENVIRONMENT.items() for word in ("--setenv", *pair)),
]  # fmt: skip
PATIENCE = 5  # seconds for bubblewrap to say which process it started

INSTALL = (
    "generated code runs inside bubblewrap only, and there is no `bwrap` here: `apt install "
    "bubblewrap` (Linux; version 0.7 or newer), or --unsafe to run it unprotected"
)
REFUSED = (
    "bubblewrap makes no sandbox here, so no generated code runs: {said}\n"
    "It needs version 0.7 or newer and user namespaces. Docker and Podman: start the container "
    "with --security-opt seccomp=unconfined --security-opt apparmor=unconfined. Ubuntu 24.04 and "
    "newer: sysctl kernel.apparmor_restrict_unprivileged_userns=0. Older Debian: sysctl "
    "kernel.unprivileged_userns_clone=1. Or --unsafe to run it unprotected"
)


class Bubblewrap:
    """Starts programs in sandboxes. UserError if there is no bwrap, or no filter for this machine.

    Whether it works shows only at the first start.
    """

    packages = PACKAGES

    def __init__(self, interpreter: Interpreter, limits: Limits) -> None:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise UserError(INSTALL)
        self._filter = seccomp.program()
        self._arguments = [bwrap, *NAMESPACES, *_root(interpreter, limits)]

    def start(self, command: Sequence[str], streams: Streams, verdict: int) -> Contained:
        """Start `command` with these descriptors; it sees no others."""
        with ExitStack() as stack:
            told, tell = os.pipe()
            stack.callback(os.close, tell)
            rules = os.memfd_create("filter")
            stack.callback(os.close, rules)
            os.write(rules, self._filter)
            os.lseek(rules, 0, os.SEEK_SET)
            descriptors = ["--seccomp", str(rules), "--info-fd", str(tell), "--"]
            popen = subprocess.Popen(
                [*self._arguments, *descriptors, *command],
                **streams,
                env={},
                pass_fds=(rules, tell, verdict),
                cwd="/",
            )
        return Contained(popen, told)


class Contained(Process):
    """bwrap itself waits outside for the program and ends when it does."""

    def __init__(self, popen: subprocess.Popen[Any], told: int) -> None:
        super().__init__(popen)
        self._told = told
        self._pid = self._handle = 0  # of process 1 inside; the handle means it and no later one
        self._open = ExitStack()
        self._open.callback(os.close, told)

    def cpu(self) -> float:
        """Seconds of processor time of the program alone."""
        pid = self._find(0)
        return cpu_of(pid) if pid else 0.0

    def files(self) -> int:
        """Inodes in use in its `/tmp`."""
        with suppress(OSError):  # it has ended
            if pid := self._find(0):
                found = os.statvfs(f"/proc/{pid}/root/tmp")
                return found.f_files - found.f_ffree
        return 0

    def kill(self) -> None:
        """Kill process 1 in the sandbox, and with it the kernel kills the rest.

        bwrap outside is then the one to see it dead: after its end nothing is left.
        """
        if self._find(PATIENCE):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        else:  # it has not come that far; what there is dies with bwrap
            self._popen.kill()

    def end(self, wait: bool = False) -> tuple[int, float] | None:
        """See `Process.end`; bwrap hands on the exit code, 128 + number after a signal."""
        end = super().end(wait)
        if end is not None:
            self._open.close()
        return end

    def _find(self, patience: float) -> int:
        """The program's number once bwrap has told it, 0 before; waits `patience` seconds."""
        if not self._pid and select.select([self._told], [], [], patience)[0]:
            with suppress(OSError, ValueError, KeyError):
                pid = json.loads(os.read(self._told, 4096))["child-pid"]
                self._handle = os.pidfd_open(pid)
                self._open.callback(os.close, self._handle)
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self._popen.pid:  # not another one with a number used again
                    self._pid = pid
        return self._pid


def _root(interpreter: Interpreter, limits: Limits) -> list[str]:
    executable = interpreter.executable
    prefix = executable.parents[1]
    shown = dict.fromkeys([*LIBRARIES, str(prefix / "lib"), str(prefix / "lib64")])
    arguments: list[str] = []
    for place in filter(os.path.isdir, shown):
        if os.path.islink(place):
            arguments += ["--symlink", os.readlink(place), place]
        else:
            arguments += ["--ro-bind", place, place]
    arguments += ["--ro-bind", str(executable), str(executable)]
    for place in ("/etc/ld.so.cache", "/usr/share/zoneinfo"):
        arguments += ["--ro-bind-try", place, place]
    for name, path in interpreter.packages.items():
        arguments += ["--ro-bind", str(path), f"{PACKAGES}/{name}"]
    for name in DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    arguments += ["--size", str(limits.disk), "--tmpfs", "/tmp"]  # noqa: S108 (the sandbox's own)
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108
