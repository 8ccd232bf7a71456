"""Programs without isolation, where there is no bubblewrap and the user insists.

They get limits, an empty environment and a directory of their own, and their process group is
killed at the end. Nothing else: they can read and delete the user's files, use the network, kill
the user's processes, and leave behind processes of another session.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalearn.evaluate.sandbox.interpreter import ENVIRONMENT, Interpreter
from deltalearn.evaluate.sandbox.watch import Process, Streams, cpu_of

WARNING = (
    "generated programs run WITHOUT ISOLATION (--unsafe): they can read, change and delete "
    "your files and use the network. Only for a machine that has nothing to lose"
)


class Unsafe:
    """Starts programs as ordinary processes of this user."""

    def __init__(self, interpreter: Interpreter) -> None:
        places = {str(place.parent) for place in interpreter.packages.values()}
        self.packages = places.pop() if places else ""

    def start(self, command: Sequence[str], streams: Streams, verdict: int) -> Loose:
        """Start `command` with these descriptors, in a new temporary directory."""
        directory = tempfile.mkdtemp(prefix="unsafe-")
        popen = subprocess.Popen(
            command,
            **streams,
            env={**ENVIRONMENT, "HOME": directory},
            pass_fds=(verdict,),
            cwd=directory,
            start_new_session=True,
        )
        return Loose(popen, Path(directory))


class Loose(Process):
    """A process and its group."""

    def __init__(self, popen: subprocess.Popen[Any], directory: Path) -> None:
        super().__init__(popen)
        self._directory = directory

    def cpu(self) -> float:
        """Seconds of processor time of the first process, not of those it started."""
        return cpu_of(self._popen.pid)

    def kill(self) -> None:
        """Kill the process group; what has left it lives on."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def end(self, wait: bool = False) -> tuple[int, float] | None:
        """See `Process.end`; the rest of the group and the directory go with it."""
        known = self._end
        end = super().end(wait)
        if end is not None and known is None:
            self.kill()
            shutil.rmtree(self._directory, ignore_errors=True)
        return end
