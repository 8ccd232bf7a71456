"""What kind of model a config.json describes, said before its weights are read.

`AutoModelForCausalLM` would load a part of many models that are no causal language models, with
other weights drawn at random, or fail with a list of two hundred classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from deltalearn.errors import UserError
from deltalearn.lm.locate import ModelFiles

CAUSAL = ("ForCausalLM", "LMHeadModel", "WithLMHead")  # in the names of classes
# Kinds of models by transformers' own lists, the most telling first.
KINDS = {
    "SEQUENCE_CLASSIFICATION": "a classifier or reward model",
    "TOKEN_CLASSIFICATION": "a classifier of tokens",
    "QUESTION_ANSWERING": "a model that marks answers in a text",
    "MULTIPLE_CHOICE": "a classifier",
    "IMAGE_TEXT_TO_TEXT": "a vision-language model",
    "MULTIMODAL_LM": "a multimodal model",
    "SPEECH_SEQ_2_SEQ": "a speech model",
    "CTC": "a speech model",
    "AUDIO_CLASSIFICATION": "an audio model",
    "TEXT_TO_WAVEFORM": "an audio model",
    "TEXT_TO_SPECTROGRAM": "an audio model",
    "SEQ_TO_SEQ_CAUSAL_LM": "an encoder-decoder",
    "MASKED_LM": "an encoder that fills in masks",
    "IMAGE_CLASSIFICATION": "an image model",
    "PRETRAINING": "a model with heads of its pretraining",
}
MODEL_WORDS = ("Reward", "Score", "Classif", "ValueHead")  # of heads that transformers has not


def require_causal(files: ModelFiles) -> None:
    """Check that a model's config names a causal language model that transformers has.

    Args:
        files: The model's files.

    Raises:
        UserError: If it is of another kind or unknown here: what it is, and what to do.
    """
    path = files.directory / "config.json"
    if not path.is_file():
        return
    if fault := obstacle(_read(path, files.name)):
        raise UserError(f"{files.name}: {fault}")


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: its config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{name}: its config.json is no model's config, but a {type(config)}")
    return config


def obstacle(config: dict[str, Any]) -> str:
    """Say why the model of a config cannot be tuned on text, or answer here.

    Args:
        config: The content of config.json.

    Returns:
        The end of a sentence; empty if nothing is against it.
    """
    kind = config.get("model_type")
    named = next(iter(config.get("architectures") or ()), None)
    if "_class_name" in config and not kind:
        return f"this is a diffusion model ({config['_class_name']}); a language model is needed"
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        return _unknown(kind, config)
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None:
        what = _kind_of(named, kind)
        return f"{named or kind} is {what}; a causal language model is needed"
    if named is None or named == causal or any(mark in named for mark in CAUSAL):
        return ""
    known = hasattr(transformers, named)
    if not known and not any(word in named for word in MODEL_WORDS):
        return ""  # of another project: its weights decide
    what = _kind_of(named, kind)
    return (
        f"{named} is {what}, of which only a part would be loaded (as {causal}), and what is "
        f"written could not be read as {named} again. Save its language model as a causal one, or "
        "use another model"
    )


def _unknown(kind: Any, config: dict[str, Any]) -> str:
    here = f"transformers {transformers.__version__}"
    made = config.get("transformers_version")
    if config.get("auto_map"):
        return (
            f"model type {kind!r} is not in {here}, and the model's own code (auto_map) is never "
            "run; use a conversion to a type that transformers has, or a server that runs it"
        )
    if kind is None:
        return "its config.json names no model_type, so this is no model of transformers"
    since = f"; the model was made with {made}" if made else ""
    return (
        f"model type {kind!r} is unknown to {here}{since}. Upgrade transformers if a later version "
        "has it, or use another model"
    )


def _kind_of(named: str | None, kind: str) -> str:
    for mark, what in KINDS.items():
        names = getattr(modeling_auto, f"MODEL_FOR_{mark}_MAPPING_NAMES", {})
        if named is not None and named in _flat(names.values()):
            return what
    if named is not None and any(word in named for word in MODEL_WORDS):
        return KINDS["SEQUENCE_CLASSIFICATION"]
    if named is not None and named.endswith("Model"):
        return "a model without a head, which gives embeddings"
    for mark, what in KINDS.items():
        if kind in getattr(modeling_auto, f"MODEL_FOR_{mark}_MAPPING_NAMES", {}):
            return what
    return "no causal language model"


def _flat(values: Any) -> set[str]:
    return {name for v in values for name in ((v,) if isinstance(v, str) else v)}
