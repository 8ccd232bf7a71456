"""Protects resumption: SIGKILL at ten random moments, then the same run again.

The final pairs and scores must equal those of an uninterrupted run, no answer that was stored may
be asked for again, and at most the batch in flight may be lost at each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

STAGES = ("start", "prompts", "overlap", "generate", "pairs", "tune", "evaluate", "report")
# Each kill comes at a random moment up to a second after its stage was reached.
MOMENTS = (
    "prompts", "generate", "generate", "generate", "pairs",
    "tune", "tune", "tune", "evaluate", "evaluate",
)  # fmt: skip
KILLS = len(MOMENTS)
BATCH = 4000 // (6 + 16)  # most requests in one batch: the shortest prompt has 6 tokens
OVERRIDES = [
    "prompts.limit=700",
    "prompts.select=first",
    "seeds=[0]",
    "generate.token_budget=4000",  # about 160 requests to a batch
    "tune={lr: 1.5e-4, steps: 24, checkpoint_every: 4}",
    "arms={base: {}, delta: {chosen: s, rejected: xs},"
    " sft: {chosen: s, rejected: xs, tune: {method: sft}}}",
    "evaluate.questions.lab.limit=220",
    "evaluate.bootstrap=200",
]


def main() -> None:
    """Child process: run the recipe again and again, killing each attempt but the last.

    Arguments: out directory, number of kills. Forks after the imports, so that a kill falls into
    the work and not into seconds of importing.
    """
    import deltalearn.evaluate.reference.score
    import deltalearn.tune  # noqa: F401
    from deltalearn.generate.engines.hf import TransformersEngine
    from deltalearn.pipeline.run import run_recipe
    from deltalearn.pipeline.run_options import RunOptions
    from deltalearn.recipe import load_recipe

    out, kills = Path(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(2026)
    loaded = load_recipe("lab", OVERRIDES)
    answer = TransformersEngine.answer

    def attempt(number: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        asked = (out.parent / f"asked-{number}.txt").open("a")

        def noting(self, batch):
            asked.write("".join(request.key + "\n" for request in batch))
            asked.flush()
            return answer(self, batch)

        TransformersEngine.answer = noting
        run_recipe(loaded, RunOptions(out=out), say=lambda line: None)
        os._exit(0)

    killed = []
    for number, stage in enumerate(MOMENTS[:kills]):
        (out.parent / f"stored-{number}.txt").write_text("\n".join(sorted(keys(out))))
        pid = attempt(number)
        while STAGES.index(running(out)) < STAGES.index(stage):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"the run ended before {stage}"
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 1.0))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the run finished before it was killed"
        killed.append(running(out))
    (out.parent / f"stored-{kills}.txt").write_text("\n".join(sorted(keys(out))))
    _, status = os.waitpid(attempt(kills), 0)
    assert status == 0
    print(json.dumps(killed))


def running(out: Path) -> str:
    """The stage that the run is in, or the last one it was in."""
    manifest = out / "run.json"
    stages = json.loads(manifest.read_text())["stages"] if manifest.exists() else {}
    return list(stages)[-1].split("/")[0] if stages else "start"


def keys(out: Path) -> set[str]:
    store = out / "responses.sqlite"
    if not store.exists():
        return set()
    connection = sqlite3.connect(store)
    try:
        return {key for (key,) in connection.execute("SELECT key FROM responses")}
    except sqlite3.OperationalError:
        return set()  # killed before the table was made
    finally:
        connection.close()


def run(folder: Path, kills: int) -> list[str]:
    result = subprocess.run(
        [sys.executable, __file__, "child", str(folder / "run"), str(kills)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", 0)
    stages = run(tmp_path / "killed", KILLS)
    assert len(stages) == KILLS
    assert {"generate", "tune", "evaluate"} <= set(stages), stages
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"

    pairs = "pairs/s_over_xs.parquet"
    assert pq.read_table(whole / pairs).equals(pq.read_table(killed / pairs))
    for items in sorted(p.relative_to(whole) for p in whole.glob("scores/**/*.parquet")):
        assert pq.read_table(whole / items).equals(pq.read_table(killed / items)), items
    one, other = (json.loads((p / "summary.json").read_text()) for p in (whole, killed))
    assert one == other

    requests = keys(whole)
    assert keys(killed) == requests
    lost = 0
    for number in range(KILLS + 1):
        asked_file = tmp_path / "killed" / f"asked-{number}.txt"
        asked = asked_file.read_text().split() if asked_file.exists() else []
        stored = set((tmp_path / "killed" / f"stored-{number}.txt").read_text().split())
        assert len(asked) == len(set(asked))
        assert not set(asked) & stored, "an answer that was stored was asked for again"
        if number < KILLS:
            after = (tmp_path / "killed" / f"stored-{number + 1}.txt").read_text().split()
            missing = set(asked) - set(after)
            assert len(missing) <= BATCH, "more than the batch in flight was lost"
            lost += len(missing)
    print(f"killed in {stages}; {lost} answers in flight were lost and asked again")


if __name__ == "__main__":
    main()
