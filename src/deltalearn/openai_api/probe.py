"""What a server says of itself: its models, whether it is vLLM, and whether it is there at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.replies import UNREACHABLE

PROBE = aiohttp.ClientTimeout(total=10.0)
UNREADABLE = (aiohttp.ClientError, OSError, TimeoutError, ValueError, TypeError, AttributeError)
NAMES = 8  # of a server's models that are shown


@dataclass(frozen=True)
class ServerInfo:
    """names: of its models, none where it does not say. vllm: its version, if it is one."""

    names: tuple[str, ...] = ()
    vllm: str | None = None

    def lists(self, model: str) -> bool:
        """True if it has this model, as far as it says.

        Ollama adds ":latest" to a name, and routers take ":variants" of names that they list.
        """
        known = {model, f"{model}:latest", model.partition(":")[0]}
        return not self.names or not known.isdisjoint(self.names)

    @property
    def shown(self) -> str:
        """Some of its models, for a message."""
        return ", ".join(self.names[:NAMES]) + (", ..." if len(self.names) > NAMES else "")


async def look(session: aiohttp.ClientSession, endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is; whatever it does not say stays unknown."""
    with contextlib.suppress(*UNREADABLE):
        value = await _get(session, f"{endpoint.base}/models")
        models = [m for m in value["data"] if isinstance(m, dict)]
        names = tuple(str(m["id"]) for m in models if m.get("id"))
        vllm = None
        if any(m.get("owned_by") == "vllm" for m in models):
            vllm = "?"
            with contextlib.suppress(*UNREADABLE):
                vllm = str((await _get(session, f"{_root(endpoint)}/version"))["version"])[:40]
        return ServerInfo(names, vllm)
    return ServerInfo()


async def is_there(session: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    """True if the server answers a plain question, if only with a refusal."""
    with contextlib.suppress(*UNREADABLE):
        url = f"{endpoint.base}/models"
        async with session.get(url, timeout=PROBE, allow_redirects=False) as reply:
            return reply.status not in UNREACHABLE
    return False


async def room(
    session: aiohttp.ClientSession, endpoint: Endpoint, body: Mapping[str, Any]
) -> int | None:
    """Tokens that vLLM's context leaves for an answer to `body`; None if it does not tell."""
    asked = {k: body[k] for k in ("model", "messages", "chat_template_kwargs") if k in body}
    with contextlib.suppress(*UNREADABLE, KeyError):
        url, data = f"{_root(endpoint)}/tokenize", json.dumps(asked).encode()
        async with session.post(url, data=data, timeout=PROBE, allow_redirects=False) as reply:
            value = await reply.json(content_type=None)
        return int(value["max_model_len"]) - int(value["count"])
    return None


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    """The JSON there; ValueError if there is none."""
    async with session.get(url, allow_redirects=False) as reply:
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status}")
        return await reply.json(content_type=None)


def _root(endpoint: Endpoint) -> str:
    return endpoint.base.rpartition("/")[0]
