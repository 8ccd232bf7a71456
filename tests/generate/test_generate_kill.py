"""Protects answers from SIGKILL: at fifty random moments with each engine, then once to the end.

No stored answer is lost or asked for again, what is asked again was in flight (or answered and not
yet stored) when the process died, and the store ends with the content of an uninterrupted run.
Nothing here is measured by a clock: a busy machine only moves the moments of the kills.
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
from collections import defaultdict
from pathlib import Path

import pytest
from helpers.fault_server import FaultServer, Reply, answer_to

from deltalearn.generate.engines.openai_server import GATHER

KILLS = 50
LONGEST = {"served": 1.0, "transformers": 0.4}  # seconds until a kill
CONCURRENCY = 16
DELAY = 0.03  # seconds that the server takes for an answer
TOKEN_BUDGET = 400  # of the transformers engine: about a dozen requests a batch
pytestmark = pytest.mark.slow


def main() -> None:
    """Child process: answer again and again, each attempt but the last one killed.

    Arguments: engine, store, requests, kills, URL of the server or model directory. Prints a line
    of JSON a kill: the questions that were stored after it. An attempt tells its number with what
    it asks: in the path of the URL, or in a log beside the store. Forks after the imports, so that
    a kill falls into the work and not into seconds of importing.
    """
    engine, store, count, kills, place = sys.argv[2:]
    import deltalearn.generate.stage as stage
    from deltalearn.generate import generate
    from deltalearn.records import Prompt, Sampling
    from deltalearn.responses import RequestPlan, ResponseStore, Settings

    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
    words = ["rev", "dup", "sort", "next", "pal"]
    prompts = [
        Prompt(str(i), ({"role": "user", "content": f"{words[i % 5]} {_letters(i)}"},))
        for i in range(int(count))
    ]
    if engine == "served":
        from deltalearn.generate.engines.openai_server import ServedEngine
        from deltalearn.openai_api import Endpoint

        identity = "served:model"

        def make(attempt: int):
            endpoint = Endpoint(f"{place}/{attempt}", "model", concurrency=CONCURRENCY)
            return ServedEngine(endpoint, sampling)
    else:
        from deltalearn.generate.engines.hf import TransformersEngine
        from deltalearn.lm.load import Placement, load_model
        from deltalearn.lm.locate import locate

        files = locate(place)
        identity = files.fingerprint
        model = load_model(files, Placement("cpu", "float32"))

        class Noting(TransformersEngine):
            def answer(self, batch):
                line = json.dumps([self.attempt, [r.messages[-1]["content"] for r in batch]])
                with log_of(Path(store)).open("a") as log:
                    print(line, file=log)
                return super().answer(batch)

        def make(attempt: int):
            made = Noting(files, Placement("cpu", "float32"), sampling, TOKEN_BUDGET)
            made._model = model
            made.attempt = attempt
            return made

    requests = list(RequestPlan(identity, prompts, Settings(sampling)))
    stage.WINDOW = 128  # so that planning a window takes a part of an attempt, not all of it

    question = {r.key: r.messages[-1]["content"] for r in requests}

    def attempt(number: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        with ResponseStore(Path(store)) as opened:
            generate(opened, requests, lambda: make(number), title="x")
        os._exit(0)

    rng = random.Random(2026)
    for number in range(int(kills)):
        pid = attempt(number)
        time.sleep(rng.uniform(0.0, LONGEST[engine]))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "everything was answered before the last kill"
        print(json.dumps([question[key] for key in keys(Path(store))]), flush=True)
    _, status = os.waitpid(attempt(int(kills)), 0)
    assert status == 0, status


def log_of(store: Path) -> Path:
    return store.with_suffix(".log")


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
        SELECT r.key, m.identity, p.messages, s.json, r.text, r.token_ids, r.finish_reason, r.error
        FROM responses r JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt
        JOIN settings s ON s.id = r.settings ORDER BY r.key
    """
    connection = sqlite3.connect(store)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def run(engine: str, store: Path, count: int, kills: int, place: str) -> list[set[str]]:
    """The questions stored after each kill."""
    command = [sys.executable, __file__, "child", engine, str(store), str(count), str(kills), place]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-3000:]
    return [set(json.loads(line)) for line in result.stdout.splitlines()]


def assert_nothing_lost(stored: list[set[str]]) -> None:
    assert len(stored) == KILLS
    for before, after in itertools.pairwise(stored):
        assert before <= after, "a stored answer was lost"
    grown = sum(len(a) < len(b) for a, b in itertools.pairwise(stored))
    assert grown > KILLS / 4, "hardly a kill came after a commit: the test proves little"


def assert_asked_once(
    asked: dict[int, list[str]], stored: list[set[str]], unfinished: float
) -> None:
    """A stored answer is never asked for again, and a kill leaves few that were asked for."""
    for attempt, questions in asked.items():
        assert len(questions) == len(set(questions)), "asked twice in one attempt"
        if attempt:
            again = stored[attempt - 1].intersection(questions)
            assert not again, f"stored, and asked for again: {again}"
        if attempt < KILLS:
            assert len(set(questions) - stored[attempt]) <= unfinished, f"attempt {attempt}"
    again = sum(map(len, asked.values())) - len(set().union(*asked.values()))
    assert again, "no kill left a request unfinished: the test proves little"


def test_served(tmp_path):
    count = 16_000
    with FaultServer(lambda question, _: Reply(200, answer_to(question), delay=DELAY)) as server:
        run("served", tmp_path / "whole.sqlite", count, 0, server.url)
        assert set(server.asked.values()) == {1} and len(server.asked) == count
        server.requests.clear()
        stored = run("served", tmp_path / "killed.sqlite", count, KILLS, server.url)
    assert_nothing_lost(stored)
    assert content(tmp_path / "killed.sqlite") == content(tmp_path / "whole.sqlite")
    asked = defaultdict(list)
    for path, question in server.requests:
        asked[int(path.split("/")[2])].append(question)
    # In flight, and per connection: answers within a gathering (one a DELAY), one more that lay
    # there when it began, and one for each of the two turns that the event loop takes to end it.
    assert_asked_once(asked, stored, CONCURRENCY * (1 + GATHER / DELAY + 3))


def test_transformers(tmp_path, lab_ladder):
    place = str(lab_ladder / "s")
    run("transformers", tmp_path / "whole.sqlite", 12_000, 0, place)
    stored = run("transformers", tmp_path / "killed.sqlite", 12_000, KILLS, place)
    assert_nothing_lost(stored)
    assert content(tmp_path / "killed.sqlite") == content(tmp_path / "whole.sqlite")
    asked, largest = defaultdict(list), 0
    for line in log_of(tmp_path / "killed.sqlite").read_text().splitlines():
        attempt, questions = json.loads(line)
        asked[attempt] += questions
        largest = max(largest, len(questions))
    assert_asked_once(asked, stored, largest)  # the batch that was being decoded, or stored


if __name__ == "__main__":
    main()
