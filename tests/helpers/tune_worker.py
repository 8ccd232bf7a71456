"""What every process of the tests of several processes runs: tune the lab's student on some pairs.

Arguments: a JSON object with out, settings, seed and kill_at (a step at which to die, or null).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from deltalearn.lm.load import load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.recipe import TuneSpec
from deltalearn.tune import PairRow, ReferenceCache, prepare_examples, tune
from deltalearn.tune.loop import Run

WORDS = ["abcd", "bcda", "cdab", "dabc", "acbd", "bdca", "cadb", "dbac", "ab", "abcdefgh", "ba"]
ENDED = ("stop", "stop")


def rows() -> list[PairRow]:
    return [
        PairRow(
            word, ({"role": "user", "content": f"rev {word}"},), word[::-1], word[:0:-1], *ENDED
        )
        for word in WORDS
    ]


def main(job: dict) -> None:
    student = locate("package://deltalearn.lab/ladder/m")
    examples, _ = prepare_examples(load_tokenizer(student), rows(), 64)
    out = Path(job["out"])
    original = Run.step

    def step(self, number, stop):
        if number == job["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number, stop)

    Run.step = step
    with ReferenceCache(out / "reference.sqlite") as reference:
        result = tune(
            student,
            examples,
            TuneSpec(**job["settings"]),
            job["seed"],
            out,
            reference=reference,
            placement=place("cpu", job.get("dtype", "float32")),
        )
    if os.environ.get("RANK", "0") == "0":
        scored = {"scored": reference.scored, "resumed_at": result["resumed_at"]}
        (out / "result.json").write_text(json.dumps(scored))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
