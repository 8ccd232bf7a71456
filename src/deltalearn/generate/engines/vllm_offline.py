"""vLLM offline, in a process of its own: its memory is really returned, and its Python may differ.

Requests go in and answers come out one by one as they finish, so that a crash loses only what is
in flight.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.generate.engines.local import LocalPrompts, answer_of
from deltalearn.generate.stage import Stop, Window, failed
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.load import check_files, end_ids_of_files, load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.render import PLAIN
from deltalearn.records import Rendering, Request, Response, Sampling
from deltalearn.responses.requests import short_seed
from deltalearn.util.distributed import own_environment

WORKER = Path(__file__).with_name("vllm_worker.py")
SENT = 2048  # requests at the worker at most
GROUP = 256  # answers stored at once at most
SHOWN_LOG_LINES = 12  # last lines of the worker's log in an error
PATIENCE = 20  # seconds for a worker to end by itself


@dataclass(frozen=True)
class VllmOptions:
    """Options of a vLLM worker.

    Attributes:
        python: An interpreter that has vLLM; default this one.
        engine: Arguments of vllm.LLM.
    """

    python: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class VllmEngine:
    """Answers through a worker, which starts at the first request and ends with `close`.

    Attributes:
        files: The model's files.
        sampling: Settings of the choice of tokens.
        options: Of the worker.
        rendering: Arguments of the chat template, and its day.
        say: Is told of a worker that died, and of seeds without effect.
    """

    files: ModelFiles
    sampling: Sampling
    options: VllmOptions
    rendering: Rendering = PLAIN
    say: Callable[[str], None] = print
    name = "vllm"

    def __post_init__(self) -> None:
        check_files(self.files, "vLLM")
        tokenizer = load_tokenizer(self.files)
        self._prompts = LocalPrompts(tokenizer, self.rendering)
        self._reader = AnswerReader(tokenizer)
        self._end_ids = sorted(end_ids_of_files(self.files, tokenizer))
        self._worker: _Worker | None = None

    def start(self) -> _Worker:
        """Start the worker and wait until it has loaded the model; the first request does it too.

        UserError if there is no vLLM or it does not load the model.
        """
        first = {
            "model": str(self.files.directory),
            "engine": dict(self.options.engine),
            "end_ids": self._end_ids,
        }
        self._worker = _Worker(self.options.python or sys.executable, first)
        self.name = f"vllm {self._worker.version}"
        if self.sampling.temperature and not self._worker.seeds:
            self.say(
                "  vLLM reads prompts in parts here and takes no seeds then, on a CPU: sampled "
                "answers are others each time; leave max_num_batched_tokens and "
                "enable_chunked_prefill out of generate.vllm.options"
            )
        return self._worker

    def close(self) -> None:
        """End the worker and free its memory."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def answers(self, windows: Iterator[Window], stop: Stop) -> Iterator[list[Response]]:
        """Yield answers as they finish; see `Engine.answers`.

        A worker that dies is started again with what it had in flight, as long as each one gets
        something done.

        Raises:
            UserError: If a worker dies without having answered anything; the text has its last
                words.
        """
        todo = itertools.chain.from_iterable(w.wanted() for w in windows)
        flying: dict[str, tuple[Request, list[int]]] = {}
        while True:
            progressed = False
            try:
                for group in self._fly(todo, flying, stop):
                    progressed = True
                    yield group
                return
            except WorkerDied as died:
                self.close()
                if not progressed:
                    raise UserError(f"{self.files.name}: {died}") from None
                self.say(f"  vLLM died with {len(flying):,} requests in flight; started again")

    def _fly(
        self,
        todo: Iterator[Request],
        flying: dict[str, tuple[Request, list[int]]],
        stop: Stop,
    ) -> Iterator[list[Response]]:
        """Keep the worker busy until nothing is left; `flying` is what it has not answered."""
        for request, prompt in list(flying.values()):
            self._send(request, prompt)
        more = True
        while more or flying:
            group: list[Response] = []
            while more and len(flying) < SENT and not (stop() or group):
                batch = list(itertools.islice(todo, GROUP))
                more = bool(batch)
                ids, refused = self._prompts.ids_or_errors(batch)
                group += refused.values()
                for request in batch:
                    if request.key in ids:
                        flying[request.key] = (request, ids[request.key])
                        self._send(request, ids[request.key])
            more = more and not stop()
            if flying and not group:
                worker = self._worker or self.start()
                lines = worker.receive()
                group = [self._response(line, flying, worker.context) for line in lines]
            if group:
                yield group

    def _send(self, request: Request, ids: list[int]) -> None:
        sampling = self.sampling
        worker = self._worker or self.start()
        worker.send(
            {
                "id": request.key,
                "prompt": ids,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": self._seed(request),
            }
        )

    def _response(
        self, line: dict[str, Any], flying: dict[str, tuple[Request, list[int]]], context: int
    ) -> Response:
        request, prompt = flying.pop(line["id"])
        if "error" in line:
            if len(prompt) >= context:
                return answer_of(request.key, prompt, None, False, self._reader, context=context)
            return failed(request.key, len(prompt), "engine", line["error"])
        return answer_of(
            request.key,
            prompt,
            line["ids"],
            line["finish_reason"] == "stop",
            self._reader,
            space=self._prompts.space,
            context=context,
            seconds=line["seconds"],
            seed=self._seed(request),
        )

    def _seed(self, request: Request) -> int | None:
        """What a sampled request draws from, where vLLM lets it."""
        assert self._worker is not None
        sampled = self.sampling.temperature and self._worker.seeds
        return short_seed(request) if sampled else None


class WorkerDied(Exception):
    """The worker's process ended; the text has its last words."""


class _Worker:
    """The other process, and a thread that reads what it says."""

    def __init__(self, python: str, first: dict[str, Any]) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (lives as long)
        environment = own_environment()
        environment.pop("PYTHONPATH", None)
        environment["VLLM_NO_USAGE_STATS"] = "1"
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is ours to handle: what is in flight is finished
            )
        except OSError as error:
            raise UserError(f"{python}: this Python for vLLM does not start: {error}") from error
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()
        self._failure: str | None = None
        self.send(first)
        try:
            (ready,) = self.receive()
        except WorkerDied as died:
            self.close()
            why = _why_not(self._failure, python, self._log) if self._failure else str(died)
            raise UserError(why) from None
        self.version, self.context = ready["ready"], ready["context"]
        self.seeds = bool(ready["seeds"])

    def send(self, value: dict[str, Any]) -> None:
        """Hand a line to the worker, without waiting for it to be read."""
        self._outbox.put(json.dumps(value) + "\n")

    def receive(self) -> list[dict[str, Any]]:
        """What the worker has said since the last call; waits for one line. WorkerDied if none."""
        if self._failure:
            raise WorkerDied(f"vLLM failed: {self._failure}")
        lines = [self._lines.get()]
        while len(lines) < GROUP and not self._lines.empty():
            lines.append(self._lines.get())
        said = [line for line in lines if line is not None]
        if len(said) < len(lines):  # its last word
            self._lines.put(None)  # for the next call
        if not said:
            code = self._process.wait()
            raise WorkerDied(f"vLLM's process ended (exit code {code}){_last(self._log)}")
        found = [json.loads(line) for line in said]
        if "fatal" in found[-1]:
            self._failure = found.pop()["fatal"]
        return found or self.receive()

    def close(self) -> None:
        """End the process; one that does not end by itself is killed with all it started."""
        self._outbox.put(None)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE)
        with suppress(ProcessLookupError):  # what it started may outlive it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (line := self._outbox.get()) is not None:
                pipe.write(line)
                if self._outbox.empty():
                    pipe.flush()
            pipe.close()
        except (BrokenPipeError, ValueError):  # it died; the reader says so
            pass


def _why_not(reason: str, python: str, log: Any) -> str:
    if "No module named 'vllm'" in reason:
        return (
            f"{python} has no vLLM: install it there with `pip install vllm`, or name a Python "
            "that has it in generate.vllm.python (it may be in an environment of its own)"
        )
    return f"vLLM does not load the model: {reason}{_last(log)}"


def _last(log: Any) -> str:
    """The end of the worker's log, on lines of its own."""
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()][-SHOWN_LOG_LINES:]
    return ". Its last words:\n" + "\n".join(f"  {line[:300]}" for line in lines) if lines else ""
