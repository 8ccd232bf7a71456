"""Runs Python programs that a model wrote, and says of each whether it ran to its end.

    sandbox = Sandbox(allow=True)
    for outcome in sandbox.run_programs(programs, timeout=3.0, workers=2):
        outcome.passed, outcome.status, outcome.detail

What holds a program (details in the modules):

- `bubblewrap.py`: namespaces of its own. No network, no host file but the interpreter's, a private
  `/tmp` of limited size, no `/proc`, no devices but `null` and the random ones, an empty
  environment, no capabilities, an ordinary user.
- `seccomp.py`: no second process or thread, so no fork bomb and nothing left behind; no socket, no
  ptrace, no mount, none of the kernel's doors that a test of a function has no use for.
- `inside.py`: limits on processor time, memory (RLIMIT_AS: address space, which needs no cgroup and
  counts the whole program, for it is one process) and file size.
- `watch.py`: a wall clock, a limit on output, and the kill of everything at the end.

A verdict cannot be had by ending early, by printing, or by killing: the program passes only if a
random token of this one run, and nothing else, comes back on a pipe of its own, and the wrapper
sends it when the program has run to its end. Until then no Python code can look the token up.
**What this cannot prevent**: program, tests and wrapper share one process. A program may return an
object that equals everything, or meddle with the tests as they run; and one that is written against
this wrapper can find the token by reading its own process's memory (ctypes, a library of its own).
The host is safe from both; the verdict is not. It is meant for models that write programs, not for
an optimiser that is rewarded for defeating it.

Time limits are processor time, so that a slow or busy machine gives the verdicts of an idle one;
the wall clock, several times as long, only ends what sleeps. Limits in the literature are wall
clock (OLMES: 3 s HumanEval, 20 s HumanEval+): a program that sleeps is judged more kindly here.
Further differences from the reference's `exec` in a bare process: threads and processes fail to
start (there `os.fork` and `subprocess` are switched off, threads are not), strings hash the same
in every run, and only the standard library and numpy can be imported.
"""

from deltalearn.evaluate.sandbox.outcome import Limits, Outcome, Status
from deltalearn.evaluate.sandbox.run import Sandbox

__all__ = ["Limits", "Outcome", "Sandbox", "Status"]
