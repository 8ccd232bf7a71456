"""Models of lm_eval: here through transformers or vLLM, or behind an OpenAI-compatible server."""

from __future__ import annotations

import inspect
from typing import Any

from deltalearn.errors import UserError
from deltalearn.lm.locate import locate, locate_tokenizer
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.recipe.evaluation import BackendSpec
from deltalearn.util.distributed import alone

LOADS = {  # arguments of lm_eval's transformers model with which it must load one itself
    "parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "device_map",
    "tp_plan", "peft", "delta", "autogptq", "gptqmodel", "quantization_config",
    "load_in_4bit", "load_in_8bit", "attn_implementation",
}  # fmt: skip
IDLE = {  # arguments that change nothing of a model that is here, and why
    "think_end_token": "reasoning is told from the answer by the model's own marks",
    "gguf_file": "the model itself is named so: owner/name/FILE.gguf, or a path",
}


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
    for name, why in IDLE.items():
        if name in options.options and options.kind != "openai":
            raise UserError(f"--backend-option {name} has no effect: {why}; leave it out")
    try:
        return {"hf": _hf, "vllm": _vllm, "openai": _openai}[options.kind](options)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the back-end {options.kind} does not load: {error}; run `pip install "
            "-e '.[evaluate]'`, and `pip install vllm` for vllm"
        ) from error


def _hf(options: BackendOptions) -> Any:
    from deltalearn.evaluate.harness.hf_model import TransformersLM
    from deltalearn.lm.load import (
        check_files,
        keep_caps,
        load_model,
        load_tokenizer,
        place,
        without_sampling,
    )

    files, here = locate(options.model), place(options.device or "auto", options.dtype)
    loads = bool(LOADS & options.options.keys())
    known = inspect.signature(TransformersLM).parameters
    if not loads and (idle := [name for name in options.options if name not in known]):
        raise TypeError(f"lm_eval's model has no argument {idle[0]!r}")
    if loads:
        check_files(files, "lm_eval")
    how: dict[str, Any] = {"dtype": options.dtype, "device": here.device} if loads else {}
    model = TransformersLM(
        pretrained=str(files.directory) if loads else load_model(files, here),
        tokenizer=load_tokenizer(files, chat=False),
        batch_size=options.batch_size,
        max_length=options.context,
        trust_remote_code=False,
        **{**how, **options.options},
    )
    if "attn_implementation" not in options.options:
        keep_caps(model.model)
    model.model.generation_config = without_sampling(model.model.generation_config)
    return model


def _vllm(options: BackendOptions) -> Any:
    with alone():
        from deltalearn.evaluate.harness.vllm_model import VllmLM
        from deltalearn.lm.load import check_files, end_ids_of_files, load_tokenizer

        files = locate(options.model)
        check_files(files, "vLLM")
        model = VllmLM(
            pretrained=str(files.directory),
            dtype=options.dtype,
            max_model_len=options.context,
            trust_remote_code=False,
            **{"generation_config": "vllm", **options.options},  # no shipped sampling
        )
        model.tokenizer = _padding(load_tokenizer(files, chat=False))  # not vLLM's reading of it
        model.end_ids = end_ids_of_files(files, model.tokenizer)
        return model


def _openai(options: BackendOptions) -> Any:
    assert options.url is not None  # `loading.check` looks
    from lm_eval.models.openai_completions import LocalChatCompletion

    endpoint = Endpoint(options.url, options.model, options.key_env)
    base, values = endpoint.base, {"model": options.model, "num_concurrent": options.concurrency}
    if key := endpoint.key():  # else lm_eval sends what OPENAI_API_KEY holds
        values["header"] = {"Authorization": f"Bearer {key}"}
    values |= options.options
    if options.tokenizer is None:
        return LocalChatCompletion(base_url=f"{base}/chat/completions", **values)
    from deltalearn.lm.load import load_tokenizer

    files = locate_tokenizer(options.tokenizer)
    model = _completions()(
        base_url=f"{base}/completions",
        tokenizer=str(files.tokenizer_directory),
        tokenizer_backend="huggingface",
        max_length=options.context or 4096,
        **{"add_bos_token": None, **values},
    )
    model.tokenizer = _padding(load_tokenizer(files, chat=False))  # not lm_eval's reading of it
    return model


def _padding(tokenizer: Any) -> Any:
    """The tokenizer with a pad token, as lm_eval asks for."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
