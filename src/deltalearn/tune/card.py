"""The card of a tuned model, README.md beside its weights: what it is and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from deltalearn.lm.locate import HUB_ID
from deltalearn.recipe import TuneSpec
from deltalearn.recipe.methods import METHODS
from deltalearn.util.text_format import one_line

PAPER = "https://arxiv.org/abs/2507.06187"
LONGEST = 200  # characters of a name
# Settings that decide the weights and are told; others are in run.json of the run.
TOLD = (
    "lr", "scheduler", "warmup_ratio", "min_lr_ratio", "optimizer", "batch_size", "epochs",
    "max_length", "max_grad_norm", "weight_decay", "nll_coef",
)  # fmt: skip


def model_card(
    base: str, settings: TuneSpec, *, source: str, pairs: int, steps: int, seed: int
) -> str:
    """Write the card of a tuned model, as the Hugging Face hub reads it.

    Names and sources may be hostile: they are shown as code and obeyed by nobody.

    Args:
        base: The untouched student, as the recipe names it.
        settings: The recipe's `tune` section.
        source: Where the pairs were read.
        pairs: Trained on.
        steps: Taken.
        seed: Of training.

    Returns:
        Markdown behind a head in YAML.
    """
    method = METHODS[settings.method]
    head = ["library_name: transformers", "tags: [deltalearn, preference-tuning]"]
    if HUB_ID.fullmatch(base) and base.count("/") == 1 and not base.startswith("."):
        head.append(f"base_model: {json.dumps(base)}")
    base, source = _public(base), _public(source)
    adapters = ", with low-rank adapters that are merged in" if settings.lora else ""
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {_code(base)} tuned by {settings.method}",
            "",
            f"{_code(base)}, tuned with deltalearn by "
            f"{settings.method}: {method.meaning}{adapters}.",
            "",
            f"- base model: {_code(base)}",
            f"- pairs: {pairs:,} of {_code(source)}",
            f"- steps: {steps:,}, seed {seed}",
            *(f"- {name}: {_code(str(value))}" for name, value in _hyperparameters(settings)),
            "",
            f"Delta learning: preference pairs of two weak models, [arXiv 2507.06187]({PAPER}).",
            "",
            "No licence is given here. That of the base model, and the terms of the data and of "
            "the models that wrote the answers, hold for this one too: look them up, and add "
            "`license:` to the head of this file.",
            "",
        ]
    )


def _hyperparameters(settings: TuneSpec) -> Iterator[tuple[str, object]]:
    method = METHODS[settings.method]
    if settings.effective_beta is not None:
        yield "beta", settings.effective_beta
    if "gamma" in method.options:
        yield "gamma", settings.effective_gamma
    if settings.effective_smoothing:
        yield "label_smoothing", settings.effective_smoothing
    for name in TOLD:
        value = getattr(settings, name)
        if value is not None:
            yield name, f"{value:g}" if isinstance(value, float) else value
    if settings.lora is not None:
        for name, value in settings.lora.model_dump(mode="json", exclude_none=True).items():
            yield f"lora.{name}", ", ".join(value) if isinstance(value, list) else value


def _public(place: str) -> str:
    """A place without the folders of whoever made the model."""
    path = Path(place).expanduser()
    return "/".join(path.parts[-2:]) if path.is_absolute() else place


def _code(text: str) -> str:
    """A text as code in Markdown, whatever is in it."""
    shown = one_line(text, LONGEST)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
