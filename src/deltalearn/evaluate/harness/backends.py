"""Models of lm_eval: here through transformers or vLLM, or behind an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

from deltalearn.errors import UserError
from deltalearn.lm.locate import locate
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.recipe.evaluation import BackendSpec
from deltalearn.util.distributed import alone


class BackendOptions(BackendSpec):
    """Where a model is, and how it is run.

    Attributes:
        model: A directory or hub id; a name, at a server. With a `tokenizer` a server is asked
            through its completions, which give log-likelihoods and take a begun answer.
        dtype: As torch calls it, or auto.
    """

    model: str
    dtype: str = "auto"

    @property
    def chat_only(self) -> bool:
        """True for a server's chat: no log-likelihoods, no plain text, no begun answers."""
        return self.kind == "openai" and self.tokenizer is None

    @property
    def identity(self) -> str:
        """The fingerprint of the weights; a server's model by its name."""
        if self.kind == "openai":
            return f"served:{self.model}"
        return locate(self.model).fingerprint


def load(options: BackendOptions) -> Any:
    """lm_eval's model. UserError if something for it is missing."""
    try:
        return {"hf": _hf, "vllm": _vllm, "openai": _openai}[options.kind](options)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the back-end {options.kind} does not load: {error}; run `pip install "
            "'deltalearn[evaluate]'`, and `pip install vllm` for vllm"
        ) from error


def _hf(options: BackendOptions) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=options.model,
        dtype=options.dtype,
        device=options.device or _device(),
        batch_size=options.batch_size,
        max_length=options.context,
        trust_remote_code=False,
        **options.options,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _vllm(options: BackendOptions) -> Any:
    from lm_eval.models.vllm_causallms import VLLM

    with alone():
        return VLLM(
            pretrained=options.model,
            dtype=options.dtype,
            max_model_len=options.context,
            trust_remote_code=False,
            **options.options,
        )


def _openai(options: BackendOptions) -> Any:
    if not options.url:
        raise UserError("the back-end openai needs --url, as in http://localhost:8000/v1")
    from lm_eval.models.openai_completions import LocalChatCompletion

    endpoint = Endpoint(options.url, options.model, options.key_env)
    base, values = endpoint.base, {"model": options.model, "num_concurrent": options.concurrency}
    if key := endpoint.key():  # else lm_eval sends what OPENAI_API_KEY holds
        values["header"] = {"Authorization": f"Bearer {key}"}
    values |= options.options
    if options.tokenizer is None:
        return LocalChatCompletion(base_url=f"{base}/chat/completions", **values)
    return _completions()(
        base_url=f"{base}/completions",
        tokenizer=options.tokenizer,
        tokenizer_backend="huggingface",
        max_length=options.context or 4096,
        **{"add_bos_token": None, **values},
    )


def _completions() -> Any:
    """lm_eval's class for a server's completions, with the ids that its transformers model reads.

    By itself it sends ids without those that a tokenizer adds to a text, a BOS above all, and a
    server adds nothing to ids: plain prompts, as DROP's, would lack the BOS that they have in hf.
    """
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Completions(LocalCompletionsAPI):
        def tok_encode(
            self,
            string: Any,
            left_truncate_len: int | None = None,
            add_special_tokens: bool | None = None,
            truncation: bool = False,
            **_: Any,
        ) -> Any:
            """Ids of a text, or of several; no second BOS where a chat template wrote one."""
            if not isinstance(string, str):
                rest = (left_truncate_len, add_special_tokens, truncation)
                return [self.tok_encode(text, *rest) for text in string]
            asked = self.add_bos_token if add_special_tokens is None else add_special_tokens
            if asked is None:
                asked = self.tokenized_requests  # a text that is sent gets its BOS at the server
            bos = self.tokenizer.bos_token
            add = asked and not (bos and string.startswith(bos))
            ids = self.tokenizer(string, add_special_tokens=add, truncation=truncation).input_ids
            return ids[-left_truncate_len:] if left_truncate_len else ids

    return Completions
