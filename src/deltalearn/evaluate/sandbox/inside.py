"""Runs one program; the only code of ours that a sandbox executes, as `python -c` of this text.

argv: descriptor of the verdict pipe, seconds of processor time, bytes of memory, bytes of a file,
directory of packages or "". Standard input: the run's token, then the program (UTF-8).

The verdict pipe gets READY before the program's first line and the token after its last. While the
program runs, the token is nowhere that Python code can look: in no variable, argument, closure,
argv, environment or open file, only on the evaluation stack of the last line below, as an argument
of a call whose other argument is still being computed, by the program. The garbage collector could
list such arguments, and may not be asked.
"""

import builtins
import os
import resource
import sys
from types import ModuleType

READY = b"+"
TOKEN = 16  # bytes


def limit(what, most):
    """Lower a limit of this process to `most`, or to what it has."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def guard(event, arguments):
    """Audit hook: nothing searches the interpreter for the token."""
    if event == "gc.get_referents":
        raise RuntimeError("a program may not search the objects of its interpreter")


def prepare():
    """Set limits; the program, compiled."""
    verdict, seconds, memory, file = map(int, sys.argv[1:5])
    sys.path += filter(None, sys.argv[5:])
    sys.argv[:] = ["program.py"]
    source = b"".join(iter(lambda: os.read(0, 1 << 20), b""))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Soft and hard alike: the kernel kills at once, there is no signal to catch.
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_FSIZE, file)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_STACK, 8 << 20)
    if sys.platform == "linux":  # others refuse it
        limit(resource.RLIMIT_AS, memory)
    sys.addaudithook(guard)  # which nothing can take away
    os.write(verdict, READY)
    finish.__defaults__ = verdict, os.write, os._exit  # a program may put others in their places
    text = source.decode("utf-8", "surrogatepass")
    return compile(text, "program.py", "exec", dont_inherit=True)


def finish(token, nothing, verdict=-1, write=None, leave=None):
    """Send the token, and end here."""
    write(verdict, token)
    leave(0)  # what the program leaves to be done at exit is no part of it


if __name__ == "__main__":
    # Not __main__, as in the reference harnesses: what a program does "if run as a script" is no
    # part of the function under test.
    module = ModuleType("program")
    sys.modules["program"] = module
    finish(os.read(0, TOKEN), builtins.exec(prepare(), module.__dict__))  # type: ignore[func-returns-value]  # noqa: S102
