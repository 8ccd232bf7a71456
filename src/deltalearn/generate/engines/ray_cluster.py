"""Many workers on a Ray cluster, or on this machine, each with an engine of its own.

Workers are plain actors: batches go out one by one and every answer comes back as itself, so that
the driver stores it at once, a bad prompt is an error row and a lost worker costs what it had in
flight. (Ray Data gives back whole blocks, and ends a job when an engine dies.)
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deltalearn.errors import UserError, needs
from deltalearn.generate.engines.vllm_offline import VllmOptions
from deltalearn.generate.stage import Stop, Window, failed
from deltalearn.lm.load import Placement
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.render import PLAIN
from deltalearn.recipe import RaySpec
from deltalearn.records import Prompt, Rendering, Request, Response, Sampling
from deltalearn.util.distributed import alone

VLLM_BATCH = 256  # requests a batch where vLLM does its own batching
DEATHS = 3  # of workers over one request by itself, before it becomes an error
TOGETHER = 2  # of workers over one batch, before its requests are asked one by one
STILLBORN = 8  # workers that die while they start, before the run ends
PATIENCE = 600.0  # seconds without any worker


class RayOptions(RaySpec):
    """The section `generate.ray`, and the options of workers that have vLLM."""

    vllm: VllmOptions = VllmOptions()


@dataclass(eq=False)
class RayEngine:
    """Answers through actors, which start at the first request and end with `close`.

    UserError if ray is not installed.

    Attributes:
        place: Path, revision and chosen chat template by which every worker locates the model for
            itself.
        files: The model's files on this machine.
        placement: Device and precision.
        sampling: Settings of the choice of tokens.
        token_budget: Most tokens in one batch of transformers.
        options: The cluster and its workers.
        rendering: Arguments of the chat template, and its day, which is every worker's.
        say: Gets lines for people.
    """

    place: tuple[str, str | None, str | None]
    files: ModelFiles
    placement: Placement
    sampling: Sampling
    token_budget: int
    options: RayOptions
    rendering: Rendering = PLAIN
    say: Callable[[str], None] = print
    name = "ray"

    def __post_init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with needs("generate.engine ray needs ray", "ray", ", or choose another engine"):
            import ray
        self._ray = ray
        self._ours = False  # whether the local cluster is ours to end
        self._pool: _Pool | None = None

    def close(self) -> None:
        """End the workers, and the local cluster if there was none before."""
        if self._pool is not None:
            self._pool.close()
        if self._ours:
            self._ray.shutdown()

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Yield batches as their workers finish them; see `Engine.answers`."""
        kind, workers, gpus = self._connect()
        self.name = f"ray {self._ray.__version__} ({kind})"
        told = ("place", "placement", "sampling", "token_budget", "rendering")
        job = {name: getattr(self, name) for name in told}
        job |= {"fingerprint": self.files.fingerprint, "kind": kind, "vllm": self.options.vllm}
        self._pool = _Pool(self._ray, job, workers, self.options, gpus)
        yield from self._pool.run(self._batches(windows, kind), stop, self.say)

    def _connect(self) -> tuple[str, int, float]:
        """(engine of the workers, their number, GPUs of each)."""
        ray, options = self._ray, self.options
        if not ray.is_initialized():
            _knock(options.address)
            try:
                with alone():
                    ray.init(
                        address=options.address,
                        include_dashboard=False if options.address is None else None,
                        log_to_driver=False,
                        logging_level="ERROR",
                    )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"Ray at {options.address or 'this machine'}: {error}") from error
            self._ours = True
        have = ray.cluster_resources()
        kind = options.engine
        if kind == "auto":
            kind = "vllm" if have.get("GPU") else "transformers"
        gpus = options.gpus
        if gpus is None:
            gpus = 1.0 if kind == "vllm" and have.get("GPU") else 0.0
        room = int(have.get("CPU", 1) / options.cpus) if options.cpus else 1
        if gpus:
            room = min(room, int(have.get("GPU", 0) / gpus))
        workers = options.workers or max(1, room)
        return kind, workers, gpus

    def _batches(self, windows: Iterator[Window], kind: str) -> Iterator[list[Request]]:
        if kind == "vllm":
            todo = itertools.chain.from_iterable(w.wanted() for w in windows)
            while batch := list(itertools.islice(todo, VLLM_BATCH)):
                yield batch
            return
        from deltalearn.generate.engines.hf import TransformersEngine

        how = self.placement, self.sampling, self.token_budget, self.rendering
        yield from TransformersEngine(self.files, *how).missing_batches(windows)


class _Pool:
    """Actors by number, and what each of them has in flight."""

    def __init__(
        self, ray: Any, job: dict[str, Any], workers: int, options: RayOptions, gpus: float
    ) -> None:
        self._ray = ray
        kind = ray.remote(Worker).options(num_cpus=options.cpus, num_gpus=gpus, max_restarts=0)
        self._make = lambda: kind.remote(job)
        self._actors: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._flying: dict[Any, tuple[int, list[Request] | None]] = {}  # None: it is starting
        # One batch at a worker: what waits behind another would be lost with it, and be blamed.
        self._free: deque[int] = deque()
        self._again: deque[list[Request]] = deque()
        self._deaths: Counter[tuple[str, ...]] = Counter()  # by the keys of a batch
        self._stillborn = 0
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        number = next(self._numbers)
        self._actors[number] = self._make()
        self._flying[self._actors[number].ready.remote()] = (number, None)

    def close(self) -> None:
        """End all workers."""
        for actor in self._actors.values():
            self._ray.kill(actor)

    def run(
        self, batches: Iterator[list[Request]], stop: Stop, say: Callable[[str], None]
    ) -> Iterator[list[Response]]:
        """Answer all batches; what a lost worker had is given to others."""
        more = True
        while True:
            while self._free and (self._again or more) and not stop():
                batch = self._again.popleft() if self._again else next(batches, None)
                if batch is None:
                    more = False
                else:
                    self._ask(self._free.popleft(), batch)
            flying = any(batch is not None for _, batch in self._flying.values())
            if not flying and (stop() or not (self._again or more)):
                return
            done, _ = self._ray.wait(list(self._flying), timeout=PATIENCE)
            if not done and not flying:
                raise UserError(f"Ray gave no worker within {PATIENCE:g} s; see `ray status`")
            for ref in done:
                if group := self._take(ref, say):
                    yield group

    def _ask(self, number: int, batch: list[Request]) -> None:
        asked = [(r.key, list(r.messages)) for r in batch]
        self._flying[self._actors[number].ask.remote(asked)] = (number, batch)

    def _take(self, ref: Any, say: Callable[[str], None]) -> list[Response]:
        """What came of one call."""
        number, batch = self._flying.pop(ref)
        try:
            found = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:  # its process or its node is gone
            if "creation task" in str(error):
                raise UserError(f"a Ray worker does not start: {_last_line(error)}") from None
            return self._lost(number, batch, say)
        except self._ray.exceptions.RayTaskError as error:
            raise UserError(f"a Ray worker failed: {_last_line(error)}") from None
        self._free.append(number)
        return [] if batch is None else found

    def _lost(
        self, number: int, batch: list[Request] | None, say: Callable[[str], None]
    ) -> list[Response]:
        """Start another worker, and give the batch to it, unless too many have died over it.

        Of a batch nobody knows which request it was: they are asked one by one before any of them
        is blamed.
        """
        if self._actors.pop(number, None) is not None:  # the first of its calls to end
            self._free = deque(n for n in self._free if n != number)
            say("  a Ray worker was lost; another is started, and what it had is asked again")
            self._start()
        if batch is None:
            self._stillborn += 1
            if self._stillborn > STILLBORN:
                raise UserError("Ray workers die while they start: too little memory, most likely")
            return []
        keys = tuple(r.key for r in batch)
        self._deaths[keys] += 1
        if self._deaths[keys] < (DEATHS if len(batch) == 1 else TOGETHER):
            self._again.append(batch)
        elif len(batch) > 1:
            self._again.extend([r] for r in batch)
        else:
            reason = f"{DEATHS} workers died over it"
            return [failed(keys[0], 0, "worker_died", reason, tries=DEATHS)]
        return []


def _knock(address: str | None) -> None:
    """UserError if nothing listens at host:port, which Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"Ray at {address}: {error}; `ray start --head` starts a cluster, and leaving "
            "generate.ray.address out uses this machine"
        ) from None


def _last_line(error: BaseException) -> str:
    """What a remote traceback ends with."""
    return str(error).strip().splitlines()[-1][:500]


class Worker:
    """One engine in an actor of Ray."""

    def __init__(self, job: dict[str, Any]) -> None:
        from deltalearn.lm.locate import locate

        files = locate(*job["place"])
        if files.fingerprint != job["fingerprint"]:
            raise UserError(f"{files.name} on this node is not the model of the driver")
        sampling, rendering = job["sampling"], job["rendering"]
        if job["kind"] == "vllm":
            from deltalearn.generate.engines.vllm_offline import VllmEngine

            self._engine: Any = VllmEngine(
                files, sampling, job["vllm"], rendering, lambda line: None
            )
        else:
            from deltalearn.generate.engines.hf import TransformersEngine

            self._engine = TransformersEngine(
                files, job["placement"], sampling, job["token_budget"], rendering
            )

    def ready(self) -> int:
        """The process, once it is there."""
        return os.getpid()

    def ask(self, asked: list[tuple[str, list[Any]]]) -> list[Response]:
        """Responses to (key, messages)."""
        requests = [Request(k, Prompt("", ()), 0, tuple(messages)) for k, messages in asked]
        window = Window(requests, frozenset(r.key for r in requests))
        if hasattr(self._engine, "answer"):
            return self._engine.answer(requests)
        found = self._engine.answers(iter([window]), lambda: False)
        return list(itertools.chain.from_iterable(found))
