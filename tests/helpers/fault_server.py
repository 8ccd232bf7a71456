"""An OpenAI-compatible server that fails as it is told to, for tests of the client.

`FaultServer(plan)` serves in a thread. `plan(question, attempt)` says what happens at the
attempt-th time (from 1) that a question, the last message of a request, is asked: a Reply, or the
name of a fault. As a script it serves a fixed plan until it is killed: port and plan's name as
arguments.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MODELS = {"object": "list", "data": [{"id": "model", "object": "model", "owned_by": "tests"}]}


@dataclass(frozen=True)
class Reply:
    """A reply; `body` bytes are sent as they are. `cut`: how many of them before the end."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None


def answer_to(question: str, **changes: Any) -> dict[str, Any]:
    """A chat completion as a server gives it; every one has the same id, on purpose."""
    message = {
        "role": "assistant",
        "content": f"answer to {question}",
        **changes.pop("message", {}),
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return {"id": "the-same", "object": "chat.completion", "choices": [choice], "usage": usage}


FAULTS: dict[str, Reply | None] = {
    "429": Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
    "429 ms": Reply(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "10"}),
    "500": Reply(500, {"error": {"message": "oops"}}),
    "503": Reply(503, "upstream gone"),
    "stall": Reply(200, answer_to("too late"), delay=30.0),
    "reset": None,
    "half": Reply(200, answer_to("x"), cut=40),
    "html": Reply(200, "<html>welcome</html>"),
    "no choices": Reply(200, {"id": "x", "choices": []}),
    "null": Reply(200, answer_to("x", message={"content": None})),
    "odd reason": Reply(200, answer_to("x", finish_reason="banana")),
    "400": Reply(400, {"error": {"message": "this prompt is not wanted", "code": "bad"}}),
}
Plan = Callable[[str, int], "Reply | str | None"]


class FaultServer:
    """Serves while the block runs; `asked` counts the attempts of each question.

    `requests`: path and question of each, in the order in which they came.
    """

    def __init__(self, plan: Plan, port: int = 0) -> None:
        self.plan = plan
        self.port = port
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.models: Reply = Reply(200, MODELS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultServer:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self._loop)
            server = asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
            self._server = self._loop.run_until_complete(server)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._reply(first.split()[1], headers, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _reply(self, path: str, headers: dict, body: bytes, writer: Any) -> bool:
        """Send what the plan says; whether the connection stays."""
        self.headers.append(headers)
        if path.endswith("/models"):
            return await send(writer, self.models)
        if not path.endswith("/chat/completions"):
            return await send(writer, Reply(404, {"error": {"message": "no such path"}}))
        value = json.loads(body)
        self.bodies.append(value)
        question = value["messages"][-1]["content"]
        self.asked[question] += 1
        self.requests.append((path, question))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            planned = self.plan(question, self.asked[question])
            reply = FAULTS[planned] if isinstance(planned, str) else planned
            return await send(writer, reply)
        finally:
            self.in_flight -= 1


async def send(writer: Any, reply: Reply | None) -> bool:
    """Send a reply; None: cut the connection instead. Whether the connection stays."""
    if reply is None:
        writer.transport.abort()
        return False
    if reply.delay:
        await asyncio.sleep(reply.delay)
    content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
    data = content.encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **reply.headers}
    head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    writer.write(head.encode() + b"\r\n" + data[: reply.cut])
    await writer.drain()
    if reply.cut is not None:
        writer.transport.close()
    return reply.cut is None


def well(question: str, attempt: int) -> Reply:
    """Every question is answered."""
    return Reply(200, answer_to(question), delay=0.002)


if __name__ == "__main__":
    with FaultServer(well, int(sys.argv[1])) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(60)
