"""Asking an OpenAI-compatible server: our client against Curator and the plain openai package.

python benchmarks/http_client.py [--peers-python PATH] [--requests N] [--peer-requests N] [--long N]

Each side asks the same requests of a stub server that answers after a fixed latency, and keeps the
answers as its users get them: ours in the SQLite store, Curator in its cache and data set, openai
(AsyncOpenAI under a semaphore) as lines of a JSONL file. Each side is a process of its own on core
0; the stub, and what watches memory, are on core 1. Clocks start when a side is imported and set up
and stop when all is stored. Every request must have come back exactly once, with its own answer, or
the benchmark fails. `raw` is a client without any HTTP library, with as many requests in flight;
`stub` the same with many more: what the server itself can do.

The peers have an environment of their own; without it, only what is importable here takes part:

python -m venv peers && peers/bin/pip install bespokelabs-curator openai
python benchmarks/http_client.py --peers-python peers/bin/python

The last line is JSON: requests a second, CPU time, peak memory and memory on the way of each side,
`long` for our run of 200,000, and how many times faster ours is (`ratio_curator`, `ratio_openai`).
With the default latency and concurrency no side can ask faster than `raw`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import ChildFailed, answer_job, machine, peak_mb

MODEL = "stub"
CLIENT_CORE, SERVER_CORE = 0, 1
PACKAGES = ("deltalearn", "aiohttp", "bespokelabs-curator", "openai", "httpx")
MODULES = {"curator": "bespokelabs.curator", "openai": "openai"}
WORDS = "the model that answers here says the same few words in about a hundred tokens, so that"
TEXT = " ".join([WORDS] * 6)  # 96 words
TEMPERATURE, TOP_P, MAX_TOKENS = 0.7, 0.95, 256
MANY = 16  # times the concurrency, to find the stub's own ceiling
GLANCE = 0.02  # seconds between two looks at a side's memory
LEAST, LONG_LEAST = 1500, 1.2  # the targets: requests a second, growth of memory over the long run


def question(number: int) -> str:
    """What is asked, some fifty tokens of it."""
    return f"Question {number} of many: what do you say when {WORDS} {WORDS} nobody minds?"


def number_of(asked: str) -> int:
    return int(asked.split(maxsplit=2)[1])


class Questions:
    """`count` prompts, made anew at each reading: none is kept."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        from deltalearn.records import Prompt

        for number in range(self.count):
            yield Prompt(str(number), ({"role": "user", "content": question(number)},))


# The stub ---------------------------------------------------------------------------------------


def completion() -> tuple[bytes, bytes]:
    """A chat completion before and after the number of its question."""
    message = {"role": "assistant", "content": f"Answer NUMBER: {TEXT}"}
    body = {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 100, "total_tokens": 150},
    }
    before, _, after = json.dumps(body).encode().partition(b"NUMBER")
    return before, after


class Stub(asyncio.Protocol):
    """One connection; what was asked on any of them is counted together."""

    asked = 0
    numbers: set[int] = set()  # noqa: RUF012 (shared on purpose)
    latency = 0.0
    before, after = completion()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._got = transport, b""

    def data_received(self, data: bytes) -> None:
        self._got += data
        while True:
            head, end, rest = self._got.partition(b"\r\n\r\n")
            _, _, length = head.lower().partition(b"content-length:")
            size = int(length.split(b"\r\n", 1)[0]) if length else 0
            if not end or len(rest) < size:
                return
            self._got = rest[size:]
            self._reply(head, rest[:size])

    def _reply(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/asked":
            self._send(200, json.dumps([self.asked, len(self.numbers)]).encode())
        elif path.endswith(b"/models"):
            self._send(200, json.dumps({"data": [{"id": MODEL, "owned_by": "stub"}]}).encode())
        elif messages := json.loads(body)["messages"]:
            number = number_of(messages[-1]["content"])
            Stub.asked += 1
            self.numbers.add(number)
            answer = b"%b%d%b" % (self.before, number, self.after)
            asyncio.get_running_loop().call_later(self.latency, self._send, 200, answer)
        else:  # Curator asks nothing first, to see the headers of the answer
            self._send(400, b'{"error": {"message": "no messages"}}')

    def _send(self, status: int, body: bytes) -> None:
        head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)


async def serve(latency: float) -> None:
    """Serve until killed or alone; the port is the first line of output."""
    Stub.latency = latency
    asyncio.get_running_loop().add_reader(0, os._exit, 0)  # its input ends with the parent
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def stub(latency_ms: float) -> Iterator[str]:
    """A stub in a process of its own; its address."""
    command = [sys.executable, __file__, "--serve", "--latency", str(latency_ms)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def asked_of(url: str) -> tuple[int, int]:
    """How many questions the stub at `url` was asked, and how many different ones."""
    with urllib.request.urlopen(f"{url}/asked") as reply:  # noqa: S310 (our own server)
        return tuple(json.loads(reply.read()))


# The sides, each in its own process -------------------------------------------------------------


Clocks = tuple[float, float]  # seconds of the wall and of this process


def clocks() -> Clocks:
    return time.perf_counter(), time.process_time()


def finished(began: Clocks, rows: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Seconds and peak memory; then, with all clocks stopped, what is in the rows kept.

    rows: (question, answer). `whole` counts those whose answer is that to their question.
    """
    seconds, busy = (now - then for now, then in zip(clocks(), began, strict=True))
    peak = peak_mb()
    kept, whole, numbers = 0, 0, set()
    for asked, answer in rows:
        number = number_of(asked)
        kept += 1
        whole += answer == f"Answer {number}: {TEXT}"
        numbers.add(number)
    counts = {"kept": kept, "whole": whole, "distinct": len(numbers)}
    times = {"seconds": seconds, "busy_seconds": busy}
    return {**times, "peak_mb": peak, "versions": versions(), **counts}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """`generate` with the served engine, into a store."""
    from deltalearn.generate import generate
    from deltalearn.generate.engines.openai_server import ServedEngine
    from deltalearn.openai_api import Endpoint
    from deltalearn.records import Sampling
    from deltalearn.responses import RequestPlan, ResponseStore, Settings

    sampling = Sampling(TEMPERATURE, TOP_P, MAX_TOKENS)
    plan = RequestPlan(f"served:{MODEL}", Questions(job["requests"]), Settings(sampling))
    endpoint = Endpoint(f"{job['url']}/v1", MODEL, concurrency=job["concurrency"])
    with ResponseStore(Path(job["out"]) / "responses.sqlite") as store:
        began = clocks()
        generate(store, plan, lambda: ServedEngine(endpoint, sampling), title=MODEL)
        rows = store.db.execute(
            "SELECT p.messages, r.text FROM responses r JOIN prompts p ON p.id = r.prompt"
        )
        return finished(began, ((json.loads(turns)[0]["content"], text) for turns, text in rows))


def with_openai(job: dict[str, Any]) -> dict[str, Any]:
    """AsyncOpenAI, a task a request, a semaphore, and a line of JSON an answer."""
    from openai import AsyncOpenAI

    path = Path(job["out"]) / "answers.jsonl"

    async def ask_all() -> Clocks:
        free = asyncio.Semaphore(job["concurrency"])
        async with AsyncOpenAI(base_url=f"{job['url']}/v1", api_key="none") as client:
            create = client.chat.completions.create  # imports what it needs, a second's work
            began = clocks()
            with path.open("a") as out:

                async def ask(number: int) -> None:
                    async with free:
                        reply = await create(
                            model=MODEL,
                            messages=[{"role": "user", "content": question(number)}],
                            temperature=TEMPERATURE,
                            top_p=TOP_P,
                            max_tokens=MAX_TOKENS,
                        )
                    answer = reply.choices[0].message.content
                    row = {"question": question(number), "answer": answer}
                    out.write(json.dumps({**row, "usage": reply.usage.model_dump()}) + "\n")

                await asyncio.gather(*map(ask, range(job["requests"])))
        return began

    began = asyncio.run(ask_all())
    with path.open() as lines:
        rows = map(json.loads, lines)
        return finished(began, ((row["question"], row["answer"]) for row in rows))


def with_curator(job: dict[str, Any]) -> dict[str, Any]:
    """`curator.LLM` without limits of rate, into its cache and a data set."""
    import litellm
    from bespokelabs import curator

    # Curator counts tokens of prompts; without network tiktoken takes the copy that litellm ships.
    shipped = Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(shipped))

    class Asker(curator.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["question"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            return {"question": row["question"], "answer": response}

    asker = Asker(
        model_name=MODEL,
        backend="openai",
        backend_params={
            "base_url": f"{job['url']}/v1",
            "api_key": "none",
            "max_concurrent_requests": job["concurrency"],
            "max_requests_per_minute": 10**9,
            "max_tokens_per_minute": 10**12,
        },
        generation_params={
            "temperature": TEMPERATURE, "top_p": TOP_P, "max_tokens": MAX_TOKENS
        },
    )  # fmt: skip
    began = clocks()
    asked = [{"question": question(number)} for number in range(job["requests"])]
    kept = asker(asked, working_dir=job["out"]).dataset
    return finished(began, ((row["question"], row["answer"]) for row in kept))


class Raw(asyncio.Protocol):
    """A connection that asks the next question as soon as it has its answer."""

    def __init__(self, numbers: Iterator[int], ended: asyncio.Future[None]) -> None:
        self._numbers, self._ended, self._got = numbers, ended, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, _, body = self._got.partition(b"\r\n\r\n")
        if len(body) == int(head.rpartition(b" ")[2]):  # the length is the last header
            self._got = b""
            self._ask()

    def _ask(self) -> None:
        number = next(self._numbers, None)
        if number is None:
            self._transport.close()
            self._ended.set_result(None)
            return
        body = b'{"messages": [{"content": "%b"}]}' % question(number).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def raw(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes through sockets: an upper bound; nothing is parsed or kept."""

    async def ask_all() -> None:
        loop, numbers = asyncio.get_running_loop(), iter(range(job["requests"]))
        ends = [loop.create_future() for _ in range(job["concurrency"])]
        port = int(job["url"].rpartition(":")[2])
        for end in ends:
            await loop.create_connection(lambda end=end: Raw(numbers, end), "127.0.0.1", port)
        await asyncio.gather(*ends)

    began = clocks()
    asyncio.run(ask_all())
    return finished(began, ())


SIDES = {"ours": ours, "curator": with_curator, "openai": with_openai, "raw": raw, "stub": raw}


# Running and watching them ----------------------------------------------------------------------


def pin(core: int) -> None:
    """Keep this process on one core, where there are two and the system can."""
    if hasattr(os, "sched_setaffinity") and {CLIENT_CORE, SERVER_CORE} <= os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})


def run_side(
    side: str, count: int, options: argparse.Namespace, python: str, shares: Iterable[float]
) -> dict[str, Any]:
    """One side on `count` requests: what it found, and its memory after `shares` of them."""
    concurrency = options.concurrency * (MANY if side == "stub" else 1)
    with tempfile.TemporaryDirectory() as temporary, stub(options.latency) as url:
        directory = Path(temporary)
        (directory / "out").mkdir()
        task, answer = directory / "job.json", directory / "answer.json"
        job = {"side": side, "url": url, "requests": count, "concurrency": concurrency}
        paths = {"answer": str(answer), "out": str(directory / "out")}
        task.write_text(json.dumps({**job, **paths}))
        marks = watch(python, task, url, sorted(round(count * share) for share in shares))
        found = json.loads(answer.read_text())
        asked, distinct = asked_of(url)
    if side not in ("raw", "stub"):
        exactly_once(side, count, {**found, "asked": asked, "asked_distinct": distinct})
    found["rate"] = round(count / found.pop("seconds"), 1)
    found["cpu_ms"] = round(1000 * found.pop("busy_seconds") / count, 3)
    found["peak_mb"] = round(found["peak_mb"], 1)
    return {**found, "rss_mb": marks}


def watch(python: str, task: Path, url: str, counts: list[int]) -> dict[str, float]:
    """Run the job and look at its memory when so many requests have been asked."""
    environment = {
        **os.environ,
        "HOME": str(task.parent),  # where Curator and Hugging Face keep what they keep
        "TELEMETRY_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
        "OMP_NUM_THREADS": "1",
    }
    log, marks, last = task.with_name("log.txt"), {}, 0.0
    with log.open("w") as out:
        process = subprocess.Popen(
            [python, __file__, "--job", str(task)], stdout=out, stderr=out, env=environment
        )
        while process.poll() is None:
            asked, last = asked_of(url)[0], resident(process.pid) or last
            for count in counts[len(marks) :]:
                if asked >= count:
                    marks[str(count)] = last
            time.sleep(GLANCE)
    if process.returncode or not task.with_name("answer.json").exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise ChildFailed(f"{task.read_text()} ended with {process.returncode}:\n{tail}")
    return {str(count): marks.get(str(count), last) for count in counts}


def resident(pid: int) -> float:
    """MB that a process holds; 0 where it cannot be seen."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0.0
    return round(int(pages) * os.sysconf("SC_PAGESIZE") / 1e6, 1)


def exactly_once(side: str, count: int, found: dict[str, Any]) -> None:
    """End the benchmark unless each request was asked, answered and kept once."""
    names = ("asked", "asked_distinct", "kept", "whole", "distinct")
    if {found[name] for name in names} != {count}:
        counts = ", ".join(f"{name} {found[name]:,}" for name in names)
        sys.exit(f"{side}: not every one of {count:,} requests came back exactly once: {counts}")


def importable(python: str, side: str) -> bool:
    """Whether the package of a side can be imported there."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({MODULES[side]!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


# The whole --------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="a Python that has bespokelabs-curator and openai")
    parser.add_argument("--requests", type=int, default=20_000, help="that we ask")
    parser.add_argument("--peer-requests", type=int, default=5000, help="of these, asked by peers")
    parser.add_argument("--long", type=int, default=200_000, help="for our memory; 0: not at all")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--latency", type=float, default=20.0, help="of the stub, in ms")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.job:
        pin(CLIENT_CORE)
        answer_job(options.job, SIDES)
        return
    about = {**machine(), "load_before": round(os.getloadavg()[0], 2)}
    pin(SERVER_CORE)
    if options.serve:
        asyncio.run(serve(options.latency / 1000))
        return
    print(f"machine: {about}", flush=True)
    found = contest(options)
    print(json.dumps({**summary(found), **settings(options), "machine": about}))


def contest(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All sides, one after the other."""
    python = shutil.which(options.peers_python or sys.executable) or sys.exit("no such Python")
    peers = [side for side in MODULES if importable(python, side)]
    for missing in MODULES.keys() - set(peers):
        print(f"{missing} is not installed in {python}: it takes no part")
    here, quarters, found = sys.executable, (0.25, 0.5, 0.75, 1.0), {}
    runs = [(side, options.requests, here, quarters) for side in ("stub", "raw", "ours")]
    runs += [(side, options.peer_requests, python, quarters) for side in peers]
    for side, count, used, shares in runs:
        found[side] = run_side(side, count, options, used, shares)
        show(side, count, found[side])
    if options.long:
        found["long"] = run_side("ours", options.long, options, here, (0.1, *quarters))
        show("ours", options.long, found["long"])
    return found


def show(side: str, count: int, ran: dict[str, Any]) -> None:
    marks = ", ".join(f"{int(at):,}: {mb:.0f}" for at, mb in ran["rss_mb"].items())
    rate = f"{ran['rate']:>9,.0f} requests/s, {ran['cpu_ms']:.2f} ms of CPU each"
    peak = f"peak {ran['peak_mb']:.0f} MB (after {marks})"
    print(f"{side:>8} {count:>8,} {rate}  {peak}", flush=True)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Numbers by name and side; ratios of our rate to the peers'."""
    sides = {side: ran for side, ran in found.items() if side != "long"}
    result: dict[str, Any] = {
        "requests_per_s": {side: ran["rate"] for side, ran in sides.items()},
        "cpu_ms_per_request": {side: ran["cpu_ms"] for side, ran in sides.items()},
        "peak_mb": {side: ran["peak_mb"] for side, ran in sides.items()},
        "rss_mb": {side: ran["rss_mb"] for side, ran in sides.items()},
        "fast_enough": found["ours"]["rate"] >= LEAST,
    }
    for peer in MODULES.keys() & sides.keys():
        result[f"ratio_{peer}"] = round(found["ours"]["rate"] / sides[peer]["rate"], 2)
    if "long" in found:
        long = found["long"]
        marks = list(long["rss_mb"].values())
        growth = round(marks[-1] / marks[0], 3)
        result["long"] = {key: long[key] for key in ("rate", "cpu_ms", "peak_mb", "rss_mb")}
        result["long"] |= {"growth": growth, "flat": growth <= LONG_LEAST}
    result["versions"] = {side: ran["versions"] for side, ran in sides.items() if side != "stub"}
    return result


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked, and how."""
    names = ("requests", "peer_requests", "concurrency")
    return {name: getattr(options, name) for name in names} | {"latency_ms": options.latency}


if __name__ == "__main__":
    main()
