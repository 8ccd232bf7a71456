"""One model at one server: where it is, how it is asked, and the key that must not be seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from deltalearn.errors import UserError


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint.

    url: up to and including its version, as in http://localhost:8000/v1. model: its name there.
    key_env: the environment variable that holds the key, None for servers without one.
    concurrency: requests in flight. rpm, tpm: requests and tokens a minute. timeout: seconds for
    one try. tries: of one request, rate limits not counted. wait: seconds before the second try,
    doubled for each further one. patience: seconds without a single answer after which a server
    is given up. length_field: some servers want max_completion_tokens. body: further fields.
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None
    timeout: float = 600.0
    tries: int = 6
    wait: float = 1.0
    patience: float = 120.0
    length_field: str = "max_tokens"
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{self.shown}: a server's URL looks like http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UserError(
                f"{self.shown}: a URL must not hold a password; put the key into an environment "
                "variable and name that in key_env"
            )

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"

    @property
    def base(self) -> str:
        """The URL to put a path behind."""
        return self.url.rstrip("/").removesuffix("/chat/completions")

    def key(self) -> str | None:
        """The key, from the environment. UserError if it is not there."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(
                f"{self.shown}: the environment variable {self.key_env} is not set; put the "
                f"server's key there (export {self.key_env}=...)"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"{self.shown}: what {self.key_env} holds is no key: it has spaces or characters "
                "that a header cannot carry"
            )
        return key
