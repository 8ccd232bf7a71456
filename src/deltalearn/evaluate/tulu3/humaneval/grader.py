"""HumanEval and HumanEval+: the program that is run, and pass@k of its samples.

Pure text: nothing here executes a program; `deltalearn.evaluate.sandbox` does. Source: OLMES
`codex_humaneval::tulu` and `codex_humanevalplus::tulu`; Chen et al. 2021 (arXiv 2107.03374).
"""

from __future__ import annotations

import math

from deltalearn.evaluate.reply import cut

STOPS = ("\nclass", "\nif", "\nprint", "\n#", "\n```", "<|eot_id|>")


def program(prompt: str, completion: str, test: str, entry_point: str) -> str:
    """The Python source that passes if and only if it runs to its end without an exception.

    Not if it merely exits: a completion may call `sys.exit(0)` before the tests.

    prompt: the stub (imports, signature, docstring) as in the data. completion: the model's raw
    continuation, which is cut at the first of `STOPS` (some engines keep the one they stopped at)
    but otherwise untouched: nothing is stripped, indented or taken out of code fences, so a
    completion that repeats the whole function is as good as its body.
    test: source that defines `check(candidate)`. entry_point: the function's name.
    """
    return f"{prompt}{cut(completion, STOPS)}\n{test}\ncheck({entry_point})"


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples passes: 1 - C(n - c, k) / C(n, k), in [0, 1].

    n: samples drawn. c: how many passed, 0 to n. k: 1 to n; the suite's is n = 20, k = 10. Exact
    integers, rounded once to a float. ValueError outside these ranges: with n < k there is no
    unbiased estimate.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples passed: c must be 0 to n")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples: k must be 1 to n")
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets
