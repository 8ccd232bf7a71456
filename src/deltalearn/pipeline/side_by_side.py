"""Independent stages side by side, each in a process of its own on a device of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deltalearn.errors import UserError
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.stage import GO, Doing, Job, Say, Stage
from deltalearn.util.distributed import cores, free_gpus, own_environment
from deltalearn.util.progress import console
from deltalearn.util.signals import SafeStop, Stopped

AJob = TypeVar("AJob", bound=Job)
LAST_LINES = 20  # of what a process that crashed wrote
LOOK_EVERY = 0.2  # seconds between looks at whether to stop


def do_side_by_side(
    context: Context,
    jobs: Iterable[AJob],
    stage_of: Callable[[AJob, Doing], Stage],
    at_once: int,
) -> None:
    """Do those jobs of a run that are not done, `at_once` at a time, each in its own process."""
    waiting: dict[Worker, Stage] = {}
    for job in jobs:
        worker = Worker(job, context.say_once)
        stage = stage_of(job, worker)
        if context.directory.is_done(stage):
            context.run(stage)
        else:
            waiting[worker] = stage
    if waiting:
        context.placement  # noqa: B018 (run.json says where it was)
        places = devices(min(at_once, len(waiting)), context.recipe.device)
        side_by_side(waiting, places, lambda worker: context.run(waiting[worker]))


def devices(parallel: int, device: str) -> list[dict[str, str]]:
    """Make the environment of each of `parallel` processes: a GPU, or its share of cores.

    A single one finds all that is here.

    Raises:
        UserError: If there are fewer GPUs.
    """
    import torch

    free_gpus()  # what worked in this process before leaves room
    if parallel == 1:
        return [{}]
    if device == "cpu" or not torch.cuda.is_available():
        threads = str(max(1, cores() // parallel))
        return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}] * parallel
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else list(map(str, range(torch.cuda.device_count())))
    if parallel > len(gpus):
        raise UserError(
            f"--parallel {parallel}: each process has a GPU of its own, and there are {len(gpus)}"
        )
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:parallel]]


@dataclass(eq=False)
class Worker:
    """A process that does one job, as `Doing` says.

    Attributes:
        environment: What is set for it alone; known when it is started.
    """

    job: Job
    say: Say
    environment: dict[str, str] = field(default_factory=dict)
    _process: Any = None  # a Popen, once it is started
    _asked: bool = False
    _wrote: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def prepare(self) -> None:
        """Start the process and wait until it has found the job possible."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deltalearn.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**own_environment(), **self.environment},
            start_new_session=True,  # a Ctrl-C reaches this process, which hands it on, once
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()
        self._write(self.job.model_dump_json())
        self._until("prepared")

    def work(self) -> dict[str, Any]:
        """Let it work, and return its counts."""
        self._write(GO)
        counts = self._until("counts")
        self._process.wait()
        return counts

    def interrupt(self) -> None:
        """Ask the process to save its state and end; the second time, to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM if self._asked else signal.SIGINT)
            self._asked = True

    def close(self) -> None:
        """End the process if it has not ended."""
        if self._process is not None:
            with suppress(OSError):
                self._process.stdin.close()  # at which it ends
            self._process.wait()

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has ended, and `_until` says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _until(self, wanted: str) -> Any:
        """Pass on what it says until `wanted` is said; Stopped or UserError if it ends instead."""
        for line in self._process.stdout:
            message = json.loads(line)
            if "say" in message:
                self.say(message["say"])
            elif "error" in message:
                raise UserError(f"{self.job.title}: {message['error']}")
            elif "stopped" in message:
                raise Stopped(message["stopped"])
            elif wanted in message:
                return message[wanted]
        code = self._process.wait()
        self._reader.join()
        if self._asked:
            raise Stopped(f"{self.job.title}: stopped")
        raise UserError(
            f"{self.job.title}: its process ended with exit code {code}"
            + (" (killed; is there enough memory?)" if code == -signal.SIGKILL else "")
            + "; its last lines:\n"
            + "".join(self._wrote)
        )

    def _pass_on(self) -> None:
        for line in self._process.stderr:
            self._wrote.append(line)
            if line.startswith("warning: ") or " min left" in line:  # the bar's line a minute
                console.print(line.rstrip(), markup=False, soft_wrap=True)


def side_by_side(
    workers: Iterable[Worker], environments: list[dict[str, str]], do: Callable[[Worker], None]
) -> None:
    """Call `do` with each worker, as many at a time as there are environments.

    Those come first that have nothing in common with one at work (`Job.alike`). After an error no
    more is begun, what is at work is finished, and the first error is raised. Ctrl-C has them all
    save their state.
    """
    waiting = list(workers)
    kind = waiting[0].job.kind
    busy: list[Worker] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def take(environment: dict[str, str]) -> Worker | None:
        with lock:
            if errors or stop.asked or not waiting:
                return None
            taken = [worker.job.alike for worker in busy]
            worker = min(waiting, key=lambda w: taken.count(w.job.alike))
            waiting.remove(worker)
            busy.append(worker)
            worker.environment = environment
            return worker

    def serve(environment: dict[str, str]) -> None:
        while (worker := take(environment)) is not None:
            try:
                do(worker)
            except BaseException as error:
                errors.append(error)
            finally:
                worker.close()
                busy.remove(worker)

    with SafeStop() as stop:
        threads = [threading.Thread(target=serve, args=(e,)) for e in environments]
        for thread in threads:
            thread.start()
        try:
            told = False
            for thread in threads:
                while thread.is_alive():
                    thread.join(LOOK_EVERY)
                    if stop.asked and not told:
                        told = True
                        for worker in list(busy):
                            worker.interrupt()
        except KeyboardInterrupt:  # a second one: no state is waited for
            for worker in list(busy):
                worker.interrupt()
            raise
    if failed := [error for error in errors if not isinstance(error, KeyboardInterrupt)]:
        raise failed[0]
    if stop.asked:
        stop.leave(f"{kind}: stopped" + (f"; {len(waiting)} not begun" if waiting else ""))
