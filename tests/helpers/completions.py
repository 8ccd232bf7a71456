"""A server of completions that answers one letter."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Completions(BaseHTTPRequestHandler):
    """Completions of one letter; echoes a log-probability for each id of the prompt."""

    def do_POST(self) -> None:
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(value)
        size = len(value["prompt"][0]) + 1
        logprobs = {"token_logprobs": [-1.0] * size, "top_logprobs": [{"x": -1.0}] * size}
        body = {"choices": [{"index": 0, "text": "x", "logprobs": logprobs}]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def completions() -> Iterator[ThreadingHTTPServer]:
    """A server; `bodies` are its requests."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        server.bodies = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
