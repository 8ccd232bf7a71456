"""Protects answers from SIGKILL: at fifty random moments with each engine, then once to the end.

No stored answer is lost or asked for again, what is asked again was in flight (or answered and not
yet stored) when the process died, and the store ends with the content of an uninterrupted run.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, Reply, answer_to

from deltalearn.generate.served.engine import GATHER

KILLS = 50
LONGEST = {"served": 1.0, "transformers": 0.4}  # seconds until a kill
CONCURRENCY = 16
SLACK = 0.15  # seconds for a commit on a busy machine, or to read what a dead client sent
TOKEN_BUDGET = 400  # of the transformers engine: about a dozen requests a batch
pytestmark = pytest.mark.slow


def main() -> None:
    """Child process: answer again and again, each attempt but the last one killed.

    Arguments: engine, store, requests, kills, URL of the server or model directory. Prints a line
    of JSON a kill: its moment and the keys that were stored after it. Forks after the imports, so
    that a kill falls into the work and not into seconds of importing.
    """
    engine, store, count, kills, place = sys.argv[2:]
    import deltalearn.generate.stage as stage
    from deltalearn.generate import RequestPlan, ResponseStore, Settings, generate
    from deltalearn.records import Prompt, Sampling

    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
    words = ["rev", "dup", "sort", "next", "pal"]
    prompts = [
        Prompt(str(i), ({"role": "user", "content": f"{words[i % 5]} {_letters(i)}"},))
        for i in range(int(count))
    ]
    if engine == "served":
        from deltalearn.generate.served import Endpoint, ServedEngine

        endpoint = Endpoint(place, "model", concurrency=CONCURRENCY)
        identity = "served:model"

        def make():
            return ServedEngine(endpoint, sampling)
    else:
        from deltalearn.generate.transformers_engine import TransformersEngine
        from deltalearn.lm.load import Placement, load_model
        from deltalearn.lm.locate import locate

        files = locate(place)
        identity = files.fingerprint
        model = load_model(files, Placement("cpu", "float32"))

        def make():
            made = TransformersEngine(files, Placement("cpu", "float32"), sampling, TOKEN_BUDGET)
            made._model = model
            return made

    requests = list(RequestPlan(identity, prompts, Settings(sampling)))
    stage.WINDOW = 128  # so that planning a window takes a part of an attempt, not all of it

    def attempt() -> int:
        pid = os.fork()
        if pid:
            return pid
        with ResponseStore(Path(store)) as opened:
            generate(opened, requests, make, title="x")
        os._exit(0)

    rng = random.Random(2026)
    done = 0
    while done < int(kills):
        pid = attempt()
        time.sleep(rng.uniform(0.0, LONGEST[engine]))
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "everything was answered before the last kill"
        done += 1
        print(json.dumps([killed, keys(Path(store))]), flush=True)
    _, status = os.waitpid(attempt(), 0)
    assert status == 0, status


def _letters(i: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in f"{i:05d}")


def keys(store: Path) -> list[str]:
    if not store.exists():
        return []
    connection = sqlite3.connect(store)
    try:
        return sorted(key for (key,) in connection.execute("SELECT key FROM responses"))
    except sqlite3.OperationalError:
        return []  # killed before the table was made
    finally:
        connection.close()


def content(store: Path) -> list[tuple]:
    """All that an answer is, without when and how fast."""
    query = """
        SELECT r.key, m.identity, p.messages, s.how, r.text, r.token_ids, r.finish_reason, r.error
        FROM responses r JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt
        JOIN settings s ON s.id = r.settings ORDER BY r.key
    """
    connection = sqlite3.connect(store)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def run(
    engine: str, store: Path, count: int, kills: int, place: str
) -> list[tuple[float, set[str]]]:
    """The moment of each kill (monotonic seconds, the same for all processes), the keys stored."""
    command = [sys.executable, __file__, "child", engine, str(store), str(count), str(kills), place]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-3000:]
    lines = map(json.loads, result.stdout.splitlines())
    return [(moment, set(stored)) for moment, stored in lines]


def assert_nothing_lost(kills: list[tuple[float, set[str]]]) -> None:
    assert len(kills) == KILLS
    for (_, before), (_, after) in itertools.pairwise(kills):
        assert before <= after, "a stored answer was lost"
    grown = sum(len(a) < len(b) for (_, a), (_, b) in itertools.pairwise(kills))
    assert grown > KILLS / 4, "hardly a kill came after a commit: the test proves little"


def test_served(tmp_path):
    count, delay = 16_000, 0.03
    log: dict[str, list[float]] = {}

    def noting(question: str, attempt: int) -> Reply:
        log.setdefault(question, []).append(time.monotonic())
        return Reply(200, answer_to(question), delay=delay)

    with FaultServer(noting) as server:
        run("served", tmp_path / "whole.sqlite", count, 0, server.url)
        assert all(len(times) == 1 for times in log.values()) and len(log) == count
        log.clear()
        kills = run("served", tmp_path / "killed.sqlite", count, KILLS, server.url)
    assert_nothing_lost(kills)
    assert content(tmp_path / "killed.sqlite") == content(tmp_path / "whole.sqlite")
    # What was asked again was asked just before a kill: at the server, or waiting for its commit.
    # Or it was on its way, and the server noted it when its sender was dead already.
    moments = [moment for moment, _ in kills]
    for question, times in log.items():
        for asked in times[:-1]:
            ago = [moment - asked for moment in moments]
            assert any(-SLACK <= late <= delay + GATHER + SLACK for late in ago), (question, ago)


def test_transformers(tmp_path, lab_ladder):
    place = str(lab_ladder / "s")
    run("transformers", tmp_path / "whole.sqlite", 12_000, 0, place)
    stored = run("transformers", tmp_path / "killed.sqlite", 12_000, KILLS, place)
    assert_nothing_lost(stored)
    assert content(tmp_path / "killed.sqlite") == content(tmp_path / "whole.sqlite")


if __name__ == "__main__":
    main()
