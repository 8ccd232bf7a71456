"""Directories that hold an adapter of peft: found by what lies in them, merged when loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.errors import UserError, needs
from deltalearn.lm.weights import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def base_of(place: str, directory: Path) -> str | None:
    """Name the model that an adapter belongs to.

    Args:
        place: The directory as the user gave it, for errors.
        directory: Where it lies.

    Returns:
        A place for `locate`, or None if the directory holds no adapter.

    Raises:
        UserError: If there is an adapter that cannot be used, or a whole model beside it.
    """
    if not (directory / CONFIG).exists():
        return None
    if [path for path in directory.glob("*.safetensors") if path.name != WEIGHTS]:
        raise UserError(
            f"{place}: holds both the weights of a model and an adapter ({CONFIG}), and nothing "
            "says whether the adapter is merged into them already. If it is, remove "
            f"{CONFIG} and {WEIGHTS}; if not, move them into a folder of their own and give that "
            "folder"
        )
    if not (directory / WEIGHTS).exists():
        raise UserError(
            f"{place}: has an {CONFIG} and no {WEIGHTS}; pickled adapters are not loaded, save it "
            "again with a newer peft"
        )
    read_header(place, directory / WEIGHTS)
    try:
        base = json.loads((directory / CONFIG).read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: {CONFIG} cannot be read: {error!r}") from error
    if not isinstance(base, str) or not base:
        raise UserError(f"{place}: {CONFIG} does not name the model that it belongs to. {remedy()}")
    return base


def remedy() -> str:
    """Say how an adapter becomes an ordinary model without us."""
    return (
        "Merge it first: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "
        "ADAPTER).merge_and_unload().save_pretrained(OUT)` with peft, and copy the tokenizer's "
        "files to OUT"
    )


def merged(name: str, model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Merge an adapter into its base, in place.

    Args:
        name: The adapter, for errors.
        model: The base.
        directory: Where the adapter lies.

    Returns:
        The base with the adapter in its weights.

    Raises:
        UserError: If peft is missing, or if the adapter does not fit into the base as a whole.
    """
    with needs(f"{name}: is an adapter, for which peft is needed", "lora"):
        from peft import PeftModel, get_peft_model_state_dict
    try:
        adapted = PeftModel.from_pretrained(model, directory)
        # peft only warns of what does not fit, and the base alone would be taken for the whole.
        placed = {n: list(t.shape) for n, t in get_peft_model_state_dict(adapted).items()}
        stored = {n: t["shape"] for n, t in read_header(name, directory / WEIGHTS).items()}
        if placed != stored:
            at = sorted(n for n in placed.keys() | stored.keys() if placed.get(n) != stored.get(n))
            raise ValueError(f"{len(at)} of its weights have no place in it, {at[0]} first")
        return adapted.merge_and_unload().requires_grad_()  # peft has frozen the base
    except UserError:
        raise
    except Exception as error:  # peft has methods that cannot be merged, each with its own error
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: the adapter cannot be merged into {model.config.name_or_path}: {text}"
        ) from error
