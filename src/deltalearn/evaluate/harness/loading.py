"""What must be right before lm_eval's model is asked anything; what is not is said in one line."""

from __future__ import annotations

from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BackendOptions, load
from deltalearn.evaluate.harness.model import GROUP_SIZE
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.util.failure import brief

# What torch, transformers, vLLM and lm_eval raise of an argument that they cannot use.
WRONG = (
    TypeError, AttributeError, ValueError, LookupError, RuntimeError, OSError, AssertionError,
)  # fmt: skip
TOLD = 400  # characters of what a library says
BATCHES = 4  # of one call, and of one commit, through transformers


def check(options: BackendOptions) -> None:
    """UserError where a server cannot be asked for want of its address or key."""
    if options.kind != "openai":
        return
    if not options.url:
        raise UserError("the back-end openai needs --url, as in http://localhost:8000/v1")
    Endpoint(options.url, options.model, options.key_env).key()


def loaded(options: BackendOptions) -> Any:
    """lm_eval's model. UserError with what the libraries below say of their arguments."""
    try:
        return _loaded_here(options) if options.kind == "hf" else load(options)
    except WRONG as error:
        given = ", ".join(options.options)
        tried = f"--dtype {options.dtype}, --device {options.device or 'default'}"
        raise UserError(
            f"{options.model} does not load through {options.kind} ({tried}"
            + (f", --backend-option {given}" if given else "")
            + f"): {brief(error, TOLD)}"
        ) from error


def needs_template(model: Any, name: str) -> None:
    """Make sure that the tokenizer of lm_eval's model, if it has one, has a chat template.

    Args:
        model: Of lm_eval.
        name: Of the model, for the error.

    Raises:
        UserError: If there is none.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and getattr(tokenizer, "chat_template", "unknown") is None:
        raise UserError(
            f"the tokenizer of {name} has no chat template, by which all benchmarks but DROP are "
            "asked; choose one (--set student.chat_template=raw, or a file), give a model that has "
            "one, or --benchmark drop"
        )


def group_size(options: BackendOptions) -> int:
    """Requests of one call: what a kill may cost of a model that is here."""
    if options.kind == "hf" and isinstance(options.batch_size, int):
        return min(GROUP_SIZE, BATCHES * options.batch_size)
    return GROUP_SIZE


def _loaded_here(options: BackendOptions) -> Any:
    """What torch does not know raises; lm_eval would take another device without a word."""
    import torch

    wanted = torch.device(options.device) if options.device else None
    if options.dtype != "auto" and not isinstance(getattr(torch, options.dtype, 0), torch.dtype):
        raise ValueError(f"torch has no precision {options.dtype!r}")
    model = load(options)
    used = getattr(model, "device", None)
    if wanted and isinstance(used, torch.device) and wanted.type != used.type:
        raise ValueError(f"the device that lm_eval takes is {used}")
    return model
