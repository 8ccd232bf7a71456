"""Find a model's files and identify them by content. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.lm.adapters import base_of, remedy
from deltalearn.lm.cached import made_fingerprint
from deltalearn.lm.gguf import file_of_hub, gguf_directory, is_gguf
from deltalearn.lm.hashes import FileHashes
from deltalearn.lm.templates import with_template
from deltalearn.lm.weights import INDEX, read_header, weight_files
from deltalearn.util.failure import brief
from deltalearn.util.files import digest
from deltalearn.util.paths import PACKAGE_SCHEME, local_path, looked_for

# What a model needs and no more: pickled weights are never fetched, nor remote code.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
WITHOUT_WEIGHTS = [pattern for pattern in WANTED if pattern != "*.safetensors"]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HERE = (PACKAGE_SCHEME, "/", "./", "../", "~")  # what a place of the hub never begins with


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk.

    Attributes:
        name: As the user gave it.
        directory: Its config and weights; of an adapter, those of its base.
        fingerprint: Changes exactly when weights or tokenizer change.
        adapter: Where the adapter lies that is merged into the weights when they are loaded.
        commit: Of a hub model.
        chat_template: What was chosen instead of the model's own: a name or a file.
    """

    name: str
    directory: Path
    fingerprint: str
    adapter: Path | None = None
    commit: str | None = None
    chat_template: str | None = None

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer lies: with the adapter, if that has one of its own."""
        own = self.adapter is not None and _has_tokenizer(self.adapter)
        return self.adapter if self.adapter and own else self.directory


def locate(place: str, revision: str | None = None, chat_template: str | None = None) -> ModelFiles:
    """Find the files of a model.

    Args:
        place: A directory, a GGUF file, `package://...` of either, a Hugging Face hub id, or
            `owner/name/file.gguf` for a file of one. What is of the hub is downloaded (safetensors
            only, or that file) into the hub's own cache. Models of the hub are identified by their
            commit, GGUF files and directories by their content.
        revision: Commit, branch or tag of a hub id.
        chat_template: Instead of the model's own: a name that `templates` knows, or a file.

    Returns:
        The files with their fingerprint, of which a chosen chat template is a part.

    Raises:
        UserError: If the place is none of these, if it lacks a config, weights or a tokenizer, or
            if a `revision` is given for what is on this disk.
    """
    files = _locate(place, revision)
    if chat_template is None:
        return files
    directory, fingerprint = with_template(files, chat_template)
    return replace(files, directory=directory, fingerprint=fingerprint, chat_template=chat_template)


def _locate(place: str, revision: str | None) -> ModelFiles:
    path = local_path(place)
    if path.exists() and revision is not None:
        kind = "directory" if path.is_dir() else "file"
        raise UserError(f"{place}: revision {revision!r} has no effect on a {kind}; remove it")
    if path.is_file():
        return ModelFiles(place, *gguf_directory(place, path))
    if path.is_dir():
        if base := base_of(place, path):
            return _adapted(place, path, base)
        require_model_files(place, path)
        return ModelFiles(place, path, made_fingerprint(path) or directory_fingerprint(path))
    if is_gguf(place):
        return _gguf_of_hub(place, revision)
    if place.startswith(HERE) or not HUB_ID.fullmatch(place):
        raise UserError(f"{place}: no such model directory{looked_for(place)}")
    path = download(place, revision)
    if base := base_of(place, path):
        return _adapted(place, path, base)
    require_model_files(place, path)
    return ModelFiles(place, path, f"hub:{place}@{path.name}", commit=path.name)


def _gguf_of_hub(place: str, revision: str | None, *, network: bool = True) -> ModelFiles:
    """A GGUF file that is not on this disk, or only in the hub's cache."""
    found = None if place.startswith(HERE) else file_of_hub(place)
    if found is None:
        raise UserError(f"{place}: no such GGUF file")
    hub_id, name = found
    path = download(hub_id, revision, [name], network=network)
    if not (path / name).exists():
        raise UserError(
            f"{place}: {hub_id} has no file {name} in the hub; see its list of files, whose names "
            "are told apart by case"
        )
    return ModelFiles(place, *gguf_directory(place, path / name), commit=path.name)


def has_chat_template(files: ModelFiles) -> bool:
    """Tell whether a chat template lies beside a model, in any of the places that it may."""
    folder = files.tokenizer_directory
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    with suppress(OSError, ValueError):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and bool(config.get("chat_template"))
    return False


def locate_tokenizer(
    place: str,
    revision: str | None = None,
    chat_template: str | None = None,
    *,
    network: bool = True,
) -> ModelFiles:
    """Find config and tokenizer of a model; of a hub model only those are downloaded.

    Args:
        place: See `locate`.
        revision: See `locate`.
        chat_template: See `locate`.
        network: False looks on this disk alone.

    Returns:
        The files, without a fingerprint unless an adapter is among them.

    Raises:
        UserError: If they are not to be had.
    """
    path = local_path(place)
    if path.is_file() or (path.is_dir() and base_of(place, path)):
        files = locate(place)
    elif path.is_dir():
        files = ModelFiles(place, path, "")
    elif is_gguf(place):
        files = _gguf_of_hub(place, revision, network=network)
    else:
        found = download(place, revision, WITHOUT_WEIGHTS, network=network)
        files = ModelFiles(place, found, "", commit=found.name)
    if chat_template is None:
        return files
    key = files.fingerprint or directory_fingerprint(files.directory, WITHOUT_WEIGHTS)
    directory, _ = with_template(replace(files, fingerprint=key), chat_template)
    return replace(files, directory=directory, chat_template=chat_template)


def download(
    hub_id: str, revision: str | None, wanted: Sequence[str] = WANTED, *, network: bool = True
) -> Path:
    """Find files of a hub model, in the hub's own cache or else in the network.

    Args:
        hub_id: The model.
        revision: Commit, branch or tag.
        wanted: Patterns of its files.
        network: Whether to look further than this disk.

    Returns:
        The directory of that commit.

    Raises:
        UserError: If they are not to be had.
    """
    from huggingface_hub import snapshot_download

    how: dict[str, Any] = {"allow_patterns": list(wanted), "local_files_only": not network}
    try:
        return Path(snapshot_download(hub_id, revision=revision, **how))
    except Exception as error:  # the hub raises a dozen unrelated kinds; all mean "not to be had"
        raise UserError(
            f"{hub_id}: no directory of that name here, and the Hugging Face hub did not give it "
            f"({brief(error)}). Check the spelling; for a gated or private model run "
            "`hf auth login`; without a network, pass the path of a downloaded model."
        ) from error


def _adapted(place: str, adapter: Path, base: str) -> ModelFiles:
    """The base of an adapter, with the adapter."""
    try:
        files = locate(base)
    except UserError as error:
        raise UserError(
            f"{place}: is an adapter of {base}, which is not to be had: {error}. {remedy()}"
        ) from error
    if files.adapter is not None:
        raise UserError(f"{place}: is an adapter of {base}, itself an adapter. {remedy()}")
    whole = digest([files.fingerprint, directory_fingerprint(adapter)])
    return ModelFiles(place, files.directory, whole, adapter)


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / name).exists() for name in VOCABULARIES)


def require_model_files(place: str, directory: Path, *, weights: bool = True) -> None:
    """Make sure that a directory holds a model: a config, a tokenizer and whole weight files.

    Args:
        place: The model, for errors.
        directory: Where it lies.
        weights: False leaves the weights out.

    Raises:
        UserError: If something is not there or damaged.
    """
    if not (directory / "config.json").exists():
        raise UserError(f"{place}: no config.json, so this is not a model directory ({directory})")
    if weights:
        for file in weight_files(place, directory):
            read_header(place, file)
    if not _has_tokenizer(directory):
        raise UserError(
            f"{place}: no tokenizer in {directory}. Save one beside the weights with "
            "`tokenizer.save_pretrained(directory)`."
        )


def directory_fingerprint(directory: Path, wanted: Sequence[str] = WANTED) -> str:
    """Hash of the contents of every model file in `directory`, whatever its path.

    Shards and chat templates may lie in folders of it.

    Large files are read once: their hashes are remembered by path, size and modification time in
    the user's cache directory. UserError if one of them cannot be read.
    """
    known = FileHashes()
    found = {p for pattern in wanted for p in directory.glob(pattern) if not p.is_dir()}
    if wanted is WANTED and (directory / INDEX).exists():
        found.update(weight_files(str(directory), directory))
    found |= set(directory.glob("additional_chat_templates/*.jinja"))
    try:
        hashes = {str(p.relative_to(directory)): known.hash_of(p) for p in sorted(found)}
    except OSError as error:
        raise UserError(f"{directory}: a model file cannot be read: {error}") from error
    known.save()
    return digest(hashes)
