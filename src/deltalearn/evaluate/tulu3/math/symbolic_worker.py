"""A process that compares LaTeX strings with sympy, one line of JSON in, one out.

It runs as a script (with -P: nothing of its folder is found) and imports nothing of deltalearn.
Out, first: {"ready": true}, or {"missing": why}. Then for each line [a, b] in: true or false.
A comparison that takes too long kills the process: SIGPROF is left at its default action, which
ends even a computation inside C code, where no Python handler would ever run. Processor time
counts, so that no verdict depends on how busy the machine is.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

SECONDS = float(sys.argv[1])  # of processor time, for one comparison
MEMORY = int(sys.argv[2])  # bytes of address space


def main() -> None:
    """Answer until the input ends."""
    try:
        parse_latex, simplify = load()
    except ImportError as error:
        return tell({"missing": str(error)})
    with suppress(OSError, ValueError):  # macOS refuses; the time limit still holds
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tell({"ready": True})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        a, b = json.loads(line)
        same = equal(a, b, parse_latex, simplify)
        signal.setitimer(signal.ITIMER_PROF, 0)
        tell(same)


def load():
    """sympy's LaTeX parser, tried once, as it loads its tables at its first use.

    ImportError without sympy, or without the antlr4 that sympy's grammar was made with.
    """
    from sympy import simplify
    from sympy.parsing.latex import parse_latex

    try:
        found = version("antlr4-python3-runtime")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith("4.11"):
        raise ImportError(f"antlr4-python3-runtime 4.11 is needed, found {found}")
    simplify(parse_latex(r"\frac{1}{2}") - parse_latex("0.5"))
    return parse_latex, simplify


def equal(a, b, parse_latex, simplify):
    """Say whether the difference simplifies to zero; False for what does not parse or subtract."""
    try:
        return bool(simplify(parse_latex(a) - parse_latex(b)) == 0)
    except Exception:  # hostile text: errors of the parser, of sympy, recursion, memory
        return False


def tell(message) -> None:
    """Write one line of JSON."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
