"""A changed model as files that others can read: written, rehearsed before a run, read back."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.load import check_files, load_tokenizer
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.lm.quantized import stored_quantization
from deltalearn.lm.remember import remember, require_remembered
from deltalearn.lm.tokenizer import name_class_by_file
from deltalearn.lm.transformers_private import headers_alone
from deltalearn.util.files import write_text

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "*.spm", "tekken.json", "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
OTHER_FILES = ("generation_config.json", "*processor_config.json")
REMOTE_CODE = "auto_map"
NOTHING: Mapping[str, Any] = {}


def write_model(
    model: PreTrainedModel,
    files: ModelFiles,
    directory: Path,
    template: Mapping[str, Any] = NOTHING,
    changes: Mapping[str, Any] = NOTHING,
) -> None:
    """Write a changed model beside the side files of the one that it came from.

    Tokenizer, template, generation config and processor are copied, byte for byte: written anew
    they would be in the format of this transformers, which others cannot read. The config is the
    old one with what has changed. Neither names code of its own (`auto_map`): what was trained is
    transformers' class, and code that nobody here has read is not handed on.

    Args:
        model: The model, unquantised.
        files: Those that it came from.
        directory: Exists already.
        template: Arguments of the chat template that it was trained with, which the copy of the
            template has as defaults.
        changes: Fields of the text model's config that are other ones now.
    """
    model.save_pretrained(directory)
    source = files.directory / "config.json"
    _write_config(model.config, source, directory / "config.json", changes)
    _copy(files.directory, directory, OTHER_FILES)
    copy_tokenizer(files, directory, template)


def copy_tokenizer(files: ModelFiles, directory: Path, template: Mapping[str, Any]) -> None:
    """Copy the files of a tokenizer; see `write_model`.

    Where `tokenizer_class` is a class that reads tokenizer.json otherwise, the copy names the one
    that reads it as it is: the tuned model has seen no other ids.

    Args:
        files: Of the model that the tokenizer is of.
        directory: Gets the copies.
        template: As for `write_model`.
    """
    _copy(files.tokenizer_directory, directory, TOKENIZER_FILES)
    settings = directory / "tokenizer_config.json"
    if settings.exists() and REMOTE_CODE in (values := _read(settings)):
        _write(settings, {k: v for k, v in values.items() if k != REMOTE_CODE})
    name_class_by_file(directory)
    remember(directory, template)


def _copy(source: Path, directory: Path, patterns: tuple[str, ...]) -> None:
    for file in sorted({*source.glob("*"), *source.glob("*/*.jinja")}):
        name = file.relative_to(source)
        if file.is_file() and any(fnmatch(str(name), pattern) for pattern in patterns):
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, directory / name)


def _write_config(
    config: PretrainedConfig, source: Path, file: Path, changes: Mapping[str, Any]
) -> None:
    """The config of the source with what is no longer true of the model put right."""
    written, values = _read(file), _read(source)
    parts = [(values, written)]
    if isinstance(inner := values.get("text_config"), dict):
        parts.append((inner, written.get("text_config") or {}))
    parts[-1][0].update(changes)
    for old, new in parts:
        for name in ("quantization_config", REMOTE_CODE):
            old.pop(name, None)
        for name in {"dtype", "torch_dtype"} & old.keys():
            old[name] = written["dtype"]
        if "tie_word_embeddings" in new:
            old["tie_word_embeddings"] = new["tie_word_embeddings"]
    if not {"dtype", "torch_dtype"} & values.keys():
        values["torch_dtype"] = written["dtype"]  # the name that old and new versions read
    values["architectures"] = written["architectures"]
    _write(file, values)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def check_written(directory: Path) -> None:
    """Make sure that transformers and we can read a model: names, shapes, config, tokenizer.

    No weights are read, so it takes no memory.

    Raises:
        UserError: If something does not fit.
    """
    files = locate(str(directory))
    check_files(files, "transformers")
    if stored := stored_quantization(directory):
        raise UserError(f"{directory}: its config says that the weights are {stored}")
    load_tokenizer(files, chat=False)


def rehearse(
    files: ModelFiles, dtype: str, out: Path, template: Mapping[str, Any] = NOTHING
) -> None:
    """Write the model that a run will leave, without its numbers, and read it back.

    What is written are headers before holes: nothing of the size of a model, in seconds.

    Args:
        files: The student's files.
        dtype: Of the weights that will be written.
        out: A folder for it; nothing stays there.
        template: As for `write_model`.

    Raises:
        UserError: If what would be written could not be read, or would not render by itself what
            the student does with `template`.
        Exception: Whatever transformers raises of a model that it cannot make without numbers,
            or the disk of files with holes: that says nothing of the run.
    """
    model = _without_numbers(files, getattr(torch, dtype))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".rehearsal-") as folder:
        with headers_alone():
            write_model(model, files, Path(folder), template)
        try:
            check_written(Path(folder))
        except UserError as error:
            fault = str(error).removeprefix(f"{folder}: ")
            raise UserError(
                f"{files.name}: the tuned model could be written and not read again: {fault}. "
                "Write the student anew with `model.save_pretrained(directory)` and start from that"
            ) from error
        if template:
            remembering = load_tokenizer(locate(folder), chat=False)
            require_remembered(load_tokenizer(files, chat=False), remembering, template)


def _without_numbers(files: ModelFiles, dtype: torch.dtype) -> PreTrainedModel:
    if stored_quantization(files.directory) is None:
        return AutoModelForCausalLM.from_pretrained(
            files.directory, device_map="meta", dtype=dtype, trust_remote_code=False
        )
    config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
