"""Protects generation on Ray: workers and nodes may die, every request is still answered once.

Real Ray on this machine: two worker processes, or two nodes of a cluster, with the transformers
engine. The answers are those of the same engine in this process.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalearn.errors import UserError
from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.generate.stage import generate
from deltalearn.lm.locate import locate
from deltalearn.lm.render import PLAIN
from deltalearn.records import Prompt, Rendering, Request, Response, Sampling
from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore

ray = pytest.importorskip("ray")

from deltalearn.generate.engines.ray_cluster import RayEngine, RayOptions, _Pool  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning"),
]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
BUDGET = 200  # tokens of a batch: about ten requests


@pytest.fixture(scope="module")
def place(lab_ladder) -> str:
    return str(lab_ladder / "m")


@pytest.fixture(scope="module")
def requests(place) -> list[Request]:
    words = ("rev", "dup", "sort", "next", "pal")
    letters = ["".join("abcdefghij"[int(d)] for d in f"{i:03d}") for i in range(300)]
    prompts = [
        Prompt(str(i), ({"role": "user", "content": f"{words[i % 5]} {text}"},))
        for i, text in enumerate(letters)
    ]
    return list(RequestPlan(locate(place).fingerprint, prompts, Settings(GREEDY)))


@pytest.fixture(scope="module")
def expected(place, requests, cpu, tmp_path_factory) -> dict[str, Response]:
    engine = TransformersEngine(locate(place), cpu, GREEDY, BUDGET)
    with ResponseStore(tmp_path_factory.mktemp("alone") / "responses.sqlite") as store:
        generate(store, requests, lambda: engine, title="x")
        return store.get(r.key for r in requests)


def engine(place: str, cpu, said: list[str], **options) -> RayEngine:
    options = {"workers": 2, "engine": "transformers", **options}
    files = locate(place)
    return RayEngine(
        (place, None), files, cpu, GREEDY, BUDGET, RayOptions(**options), PLAIN, said.append
    )


class KillsHalfWay(RayEngine):
    """Calls `kill` once a third of the answers is there."""

    kill = staticmethod(lambda pool: None)

    def answers(self, windows, stop) -> Iterator[list[Response]]:
        seen, killed = 0, False
        for group in super().answers(windows, stop):
            yield group
            seen += len(group)
            if not killed and seen >= 100:
                killed = True
                self.kill(self._pool)


def answered(store: Path, requests, make) -> tuple[dict, dict[str, Response]]:
    with ResponseStore(store) as opened:
        counts = generate(opened, requests, make, title="x")
        assert opened.count() == len(requests), "every row once"
        return counts, opened.get(r.key for r in requests)


def test_two_workers_one_killed(place, requests, expected, cpu, tmp_path):
    said: list[str] = []
    made = engine(place, cpu, said)
    made.__class__ = KillsHalfWay

    def kill(pool) -> None:
        actor = next(iter(pool._actors.values()))
        os.kill(ray.get(actor.ready.remote()), signal.SIGKILL)

    made.kill = kill
    counts, found = answered(tmp_path / "r.sqlite", requests, lambda: made)
    assert (counts["generated"], counts["errors"]) == (300, 0)
    assert found == expected
    assert any("worker was lost" in line for line in said)
    assert made.name.startswith("ray ")
    assert not ray.is_initialized(), "the local cluster ends with the run"


def test_a_dated_template_has_the_runs_day_on_every_worker(place, requests, cpu, tmp_path):
    """Whose clocks, and days, may be others."""
    dated = shutil.copytree(place, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    letter = "{{ 'abcdefghij'[strftime_now('%d') | int % 10] }} "
    template.write_text(letter + template.read_text(encoding="utf-8"), encoding="utf-8")
    files, found = locate(str(dated)), {}
    for day in ("2024-02-03", "2031-07-08"):
        how = Rendering(day=day)
        asked = list(
            RequestPlan(
                files.fingerprint, [r.prompt for r in requests[:40]], Settings(GREEDY, day=day)
            )
        )
        alone = TransformersEngine(files, cpu, GREEDY, BUDGET, how)
        worker = RayOptions(workers=2, engine="transformers")
        many = RayEngine((str(dated), None, None), files, cpu, GREEDY, BUDGET, worker, how, print)
        wanted = found[day] = answered(tmp_path / f"{day}.sqlite", asked, lambda e=alone: e)[1]
        assert answered(tmp_path / f"{day} ray.sqlite", asked, lambda e=many: e)[1] == wanted
    texts = [[r.token_ids for r in answers.values()] for answers in found.values()]
    assert texts[0] != texts[1]


def test_two_nodes_one_removed(place, requests, expected, cpu, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()
        said: list[str] = []
        made = engine(place, cpu, said, address=cluster.address)
        made.__class__ = KillsHalfWay
        made.kill = lambda pool: cluster.remove_node(other, allow_graceful=False)
        counts, found = answered(tmp_path / "r.sqlite", requests, lambda: made)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (counts["generated"], counts["errors"]) == (300, 0)
    assert found == expected


@pytest.mark.parametrize("budget", [1, 10_000], ids=["a request a batch", "all in one batch"])
def test_a_batch_that_kills_its_workers_becomes_errors(place, cpu, tmp_path, monkeypatch, budget):
    """Workers die over one prompt, which is recorded; those beside and behind it are answered."""
    prompts = [
        Prompt(str(i), ({"role": "user", "content": f"rev {text}"},))
        for i, text in enumerate(["abc", "bcd", "cde", "def"])
    ]
    requests = list(RequestPlan(locate(place).fingerprint, prompts, Settings(GREEDY)))
    deadly = requests[1].key

    class DiesOver:  # in here, so that its code goes to the worker, who cannot import tests
        def __init__(self, job) -> None:
            from deltalearn.generate.engines.ray_cluster import Worker

            self._worker = Worker(job)

        def ready(self) -> int:
            return os.getpid()

        def ask(self, asked):
            if any(key == deadly for key, _ in asked):
                os._exit(1)
            return self._worker.ask(asked)

    said: list[str] = []
    made = engine(place, cpu, said, workers=1)
    made.token_budget = budget
    monkeypatch.setattr("deltalearn.generate.engines.ray_cluster.Worker", DiesOver)
    counts, found = answered(tmp_path / "r.sqlite", requests, lambda: made)
    assert counts["errors"] == 1
    assert (found[deadly].fault, found[deadly].tries) == ("worker_died", 3)
    assert sum(r.finish_reason != "error" for r in found.values()) == 3


class Scripted:
    """Ray without processes: a worker answers, or is lost over a deadly request in its batch."""

    class exceptions:
        RayActorError = ConnectionError
        RayTaskError = RuntimeError

    def __init__(self, deadly: str) -> None:
        self.deadly = deadly
        self.lost: set[int] = set()
        self.asked: list[list[str]] = []

    def remote(self, kind):
        return self

    def options(self, **_):
        return type("Kind", (), {"remote": staticmethod(lambda job: ScriptedActor(self))})

    def wait(self, refs, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        actor, keys = ref
        if actor.number in self.lost or self.deadly in keys:
            self.lost.add(actor.number)
            raise ConnectionError
        return [Response(key, "", (), "stop", 1) for key in keys]


class ScriptedActor:
    def __init__(self, ray) -> None:
        self.number = id(self)
        self.ready = type("Call", (), {"remote": staticmethod(lambda: (self, ()))})
        self.ask = type("Call", (), {"remote": staticmethod(self.called)})
        self.ray = ray

    def called(self, asked):
        keys = tuple(key for key, _ in asked)
        self.ray.asked.append(list(keys))
        return self, keys


@pytest.mark.parametrize("batches", [["abcd", "ef"], ["a", "b", "c"], ["cb", "a"]])
@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_shares_a_worker_with_a_deadly_request_is_not_blamed(batches, workers):
    scripted = Scripted("b")
    requests = [[Request(key, Prompt(key, ()), 0) for key in keys] for keys in batches]
    pool = _Pool(scripted, {}, workers, RayOptions(), 0.0)
    found = [r for g in pool.run(iter(requests), lambda: False, lambda line: None) for r in g]
    assert sorted(r.key for r in found) == sorted("".join(batches)), "each is answered once"
    assert [(r.key, r.fault, r.tries) for r in found if r.fault] == [("b", "worker_died", 3)]
    assert scripted.asked.count(["b"]) == 3, "alone, as often as it is blamed for"


def test_a_worker_with_another_model_is_an_error(place, requests, cpu, tmp_path):
    made = engine(place, cpu, [])
    made.files = dataclasses.replace(made.files, fingerprint="another")
    with pytest.raises(UserError, match="not the model of the driver"):
        answered(tmp_path / "r.sqlite", requests[:3], lambda: made)


def test_an_address_without_a_cluster_is_a_user_error(place, requests, cpu, tmp_path):
    made = engine(place, cpu, [], address="127.0.0.1:1")
    with pytest.raises(UserError, match=r"Ray at 127\.0\.0\.1:1"):
        answered(tmp_path / "r.sqlite", requests[:3], lambda: made)
