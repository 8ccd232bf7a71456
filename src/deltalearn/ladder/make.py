"""The ladder: siblings written, read back, held against the model, and measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.ladder.blur import add_noise, round_weights
from deltalearn.ladder.choose import Step, choose_layers
from deltalearn.ladder.layers import kept_layers, layers_of, learn_form, leave_out, require_same
from deltalearn.ladder.notes import Made, write_notes
from deltalearn.ladder.options import CHOOSE_ON, LEAST_MEASURED, LadderOptions, Sibling, siblings_of
from deltalearn.ladder.texts import Ids, loglik, read_texts
from deltalearn.lm.load import Placement, load_model, place
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.lm.quantized import stored_quantization
from deltalearn.lm.weights import read_header, weight_files
from deltalearn.lm.write import check_written, write_model
from deltalearn.util.files import replacing_directory

STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Base:
    """The model that siblings are made of.

    Attributes:
        files: Its files.
        model: It, where texts are scored.
        layers: Its layers; None unless one is to be left out.
        placement: Where texts are scored, and how precisely.
    """

    files: ModelFiles
    model: PreTrainedModel
    layers: nn.ModuleList | None
    placement: Placement


def make_ladder(model: str, options: LadderOptions) -> dict[str, Any]:
    """Make weaker siblings of a model, and measure in which order they and the model stand.

    Args:
        model: A directory, `package://...` or hub id.
        options: Which siblings, and where they go: a folder each in `options.out`, beside
            `ladder.json`.

    Returns:
        The content of `ladder.json`.

    Raises:
        UserError: If layers of such a model cannot be left out, if the texts are unfit, or if
            `options.out` holds something already.
    """
    _require_room(options.out)
    files, placement = locate(model), place(options.device, options.dtype)
    loaded = load_model(files, placement, dequantize=True)
    layers = None
    if options.counts or options.dropped is not None:
        layers = layers_of(loaded, files.name)
        learn_form(loaded, layers, files.name)
        for gone in (range(max(options.counts, default=0)), options.dropped or ()):
            kept_layers(len(layers), gone, files.name)
    base = Base(files, loaded, layers, placement)
    choose_on, measure_on = _texts(base, options)
    steps: list[Step] = []
    if layers is not None and (most := max(options.counts, default=0)):
        steps = choose_layers(loaded, layers, choose_on, most)
    found = [Made("", _measured(loaded, measure_on), files.fingerprint)]
    for sibling in siblings_of(options, tuple(step.layer for step in steps)):
        found.append(_make(base, sibling, options.out / sibling.name, measure_on))
    return write_notes(options, files, found, steps, choose_on, measure_on)


def _require_room(out: Path) -> None:
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out}: it holds something already; name a new folder with --out")


def _texts(base: Base, options: LadderOptions) -> tuple[list[Ids], list[Ids]]:
    """Texts to choose layers on, and others to measure on."""
    if options.text is None:
        return [], []
    column = options.answer_column or "answer"
    texts = read_texts(options.text, base.files, base.model, column, options.limit)
    first = (options.choose_on or CHOOSE_ON) if options.counts else 0
    if len(texts) < first + LEAST_MEASURED:
        what = f"{first} to choose on and " if first else ""
        raise UserError(
            f"{options.text}: {len(texts)} texts are too few for {what}{LEAST_MEASURED} or more to "
            "measure on; give more" + (", or a smaller --choose-on" if first else "")
        )
    return texts[:first], texts[first:]


def _measured(model: PreTrainedModel, texts: Sequence[Ids]) -> np.ndarray | None:
    return loglik(model, texts) if texts else None


def _make(base: Base, sibling: Sibling, folder: Path, texts: Sequence[Ids]) -> Made:
    """Write one sibling, read it back and measure what was read."""
    with replacing_directory(folder) as temporary:
        try:
            changes = _write(base.files, sibling, temporary)
            files, read = _read_back(base, sibling, temporary)
            if base.layers is not None and sibling.dropped is not None:
                gone = sibling.dropped
                require_same(base.files.name, base.model, base.layers, gone, read, changes)
            return Made(sibling.name, _measured(read, texts), files.fingerprint, sibling)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _read_back(base: Base, sibling: Sibling, folder: Path) -> tuple[ModelFiles, PreTrainedModel]:
    """What was written, as any other model is read; UserError of the model if it cannot be."""
    try:
        check_written(folder)
        files = locate(str(folder))
        return files, load_model(files, base.placement)
    except UserError as error:
        fault = str(error).removeprefix(f"{folder}: ")
        raise UserError(
            f"{base.files.name}: {sibling.name} could be written and not read again: {fault}"
        ) from error


def _write(files: ModelFiles, sibling: Sibling, folder: Path) -> dict[str, Any]:
    """Write a sibling in the model's own precision; the changes of its config are returned."""
    model = load_model(files, Placement("cpu", lossless_dtype(files)), dequantize=True)
    changes: dict[str, Any] = {}
    if sibling.dropped is not None:
        layers = layers_of(model, files.name)
        kept = kept_layers(len(layers), sibling.dropped, files.name)
        changes = leave_out(model, layers, kept)
    elif sibling.bits is not None:
        round_weights(model, sibling.bits, sibling.group_size or 0)
    else:
        add_noise(model, sibling.noise or 0.0, sibling.seed or 0)
    write_model(model, files, folder, changes=changes)
    return changes


def lossless_dtype(files: ModelFiles) -> str:
    """The precision that loses nothing of a model's weights: theirs, or float32 if they differ.

    Args:
        files: The model's files.

    Returns:
        The name of a dtype of torch; float32 also of merged weights, and of those in fewer bits.
    """
    if files.adapter is not None or stored_quantization(files.directory) is not None:
        return "float32"
    headers = [read_header(files.name, path) for path in weight_files(files.name, files.directory)]
    found = {tensor["dtype"] for header in headers for tensor in header.values()}
    (only,) = found if len(found) == 1 else ("",)
    return STORED.get(only, "float32")
