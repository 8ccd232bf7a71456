"""Models of a recipe: files, or an OpenAI-compatible server that has them."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from deltalearn.recipe.base import Spec
from deltalearn.recipe.template import not_an_argument

GGUF = ".gguf"  # what a file of one model ends with
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"  # of the environment
OWN_FIELDS = {  # of a request to a server: what sets them, and is part of an answer's key
    "model": "server.model",
    "messages": "the prompts, and system",
    "temperature": "generate.temperature",
    "top_p": "generate.top_p",
    "max_tokens": "generate.max_tokens",
    "max_completion_tokens": "generate.max_tokens, with server.length_field",
    "seed": "generate.seed",
    "n": "generate.samples",
    "stream": "answers are never streamed",
}
SECRET = re.compile(  # not max_tokens, stop_token_ids, eos_token and the like
    r"(^|_)(api_?key|authorization|passwords?|passwd|secrets?|secret_?key|credentials?)$"
    r"|^((api|access|auth|bearer|hf|id|refresh|session)_?)?token$"
)


class PricesSpec(Spec):
    """Prices of a million tokens, in any one currency."""

    prompt: float = Field(0.0, ge=0, description="Of prompts.")
    completion: float = Field(0.0, ge=0, description="Of answers.")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Compute the cost of prompts and answers, in the currency of the prices.

        Args:
            prompt_tokens: Of all prompts.
            completion_tokens: Of all answers.
        """
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class ServerSpec(Spec):
    """An OpenAI-compatible server behind which a model runs (vLLM, SGLang, llama.cpp, a cloud)."""

    url: str = Field(
        min_length=1, description="An OpenAI-compatible server: http://localhost:8000/v1."
    )
    model: str | None = Field(None, description="Its name at the server; default: its path.")
    key_env: str | None = Field(
        None, description="Environment variable that holds the server's key."
    )
    concurrency: int = Field(64, ge=1, description="Requests in flight at a server.")
    rpm: float | None = Field(None, gt=0, description="Requests a minute.")
    tpm: float | None = Field(None, gt=0, description="Tokens a minute.")
    timeout: float = Field(600.0, gt=0, description="Seconds for one try.")
    tries: int = Field(6, ge=1, description="Of one request; rate limits are waited for.")
    wait: float = Field(1.0, ge=0, description="Seconds before the second try, then doubled.")
    patience: float = Field(120.0, gt=0, description="Seconds without any answer: it is down.")
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the limit of an answer."
    )
    body: dict[str, Any] = Field(default_factory=dict, description="Further fields of a request.")
    prices: PricesSpec | None = Field(None, description="For the cost in a dry run.")

    # Checks are of the whole section, whose values an error does not repeat: one may be a key.

    @model_validator(mode="before")
    @classmethod
    def _names_its_key(cls, values: Any) -> Any:
        name = values.get("key_env") if isinstance(values, dict) else None
        if name is not None and not re.fullmatch(VARIABLE, str(name)):
            raise ValueError(
                "key_env must be the name of an environment variable, not the key itself: "
                "export MY_KEY=... and give key_env: MY_KEY"
            )
        return values

    @model_validator(mode="after")
    def _body_adds_only(self) -> ServerSpec:
        for key in self.body:
            if remedy := OWN_FIELDS.get(key):
                raise ValueError(f"body must not set {key}, which is set elsewhere: {remedy}")
        if secret := _secret_in(self.body):
            raise ValueError(
                f"body.{secret} looks like a key or a password, and recipes are written into runs: "
                "put it into an environment variable and name that in key_env"
            )
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> ServerSpec:
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "url must not hold a password, nor anything behind a question mark: put the key "
                "into an environment variable and name that in key_env"
            )
        return self


def _secret_in(value: Any) -> str | None:
    """Dotted path of the first key in nested values that is called like a secret."""
    if isinstance(value, list):
        return next(filter(None, map(_secret_in, value)), None)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if SECRET.search(str(key).lower().replace("-", "_")):
            return str(key)
        if deeper := _secret_in(inner):
            return f"{key}.{deeper}"
    return None


class ModelSpec(Spec):
    """A model: a Hugging Face directory, a GGUF file, `package://module/path`, or a hub id."""

    MAIN = "path"

    path: str = Field(
        min_length=1,
        description="A directory, a GGUF file, package://module/path, or a Hugging Face hub id.",
    )
    file: str | None = Field(
        None, min_length=1, description="A GGUF file in that directory or hub model."
    )
    revision: str | None = Field(None, description="Of a hub model: branch, tag or commit.")
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Instead of its own: chatml, raw (texts alone), or a file of Jinja.",
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of its chat template, everywhere."
    )

    @field_validator("template")
    @classmethod
    def _arguments(cls, template: dict[str, Any]) -> dict[str, Any]:
        if wrong := not_an_argument(template):
            raise ValueError(wrong)
        return template

    @model_validator(mode="after")
    def _one_file(self) -> ModelSpec:
        if self.file is None:
            return self
        if self.path.lower().endswith(GGUF):
            raise ValueError(f"path names a {GGUF} file already; leave file out")
        if not self.file.lower().endswith(GGUF):
            raise ValueError(f"file must be a {GGUF} file; other models are whole directories")
        if self.file.startswith(("/", "~")) or ".." in self.file.split("/"):
            raise ValueError("file must lie in the directory or hub model that path names")
        return self

    @property
    def place(self) -> str:
        """Where the model is, in one piece, for `lm.locate`."""
        return self.path if self.file is None else f"{self.path.rstrip('/')}/{self.file}"


class GeneratorSpec(ModelSpec):
    """A model that answers prompts. With `server` it is asked there, and nothing is loaded here."""

    server: ServerSpec | None = Field(None, description="Asked there; nothing is loaded here.")
    system: str | None = Field(None, min_length=1, description="Instead of generate.system.")

    @model_validator(mode="after")
    def _rendered_here(self) -> GeneratorSpec:
        if self.server is not None:
            self.idle(
                "with server, which has loaded the model and its template itself",
                "file",
                "chat_template",
            )
        return self
