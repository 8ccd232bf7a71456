"""Weight files as they lie on the disk: which of them are loaded, and what their headers say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError

SINGLE = "model.safetensors"  # the names that transformers looks for, in this order
INDEX = "model.safetensors.index.json"
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
LONGEST_HEADER = 100_000_000  # as safetensors itself has it
BYTES = {"64": 8, "32": 4, "16": 2, "8": 1, "BOOL": 1}  # by what a dtype's name ends with
POINTER = b"version https://git-lfs"


def weight_files(place: str, directory: Path) -> list[Path]:
    """List the files that are loaded as the weights of a model: one, or the shards of an index.

    Args:
        place: The model, for errors.
        directory: Where it lies.

    Returns:
        Paths; those of an index in its order, each once.

    Raises:
        UserError: If there are none, if the index cannot be read, or if it names a shard that is
            absent or outside of `directory`.
    """
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    if not (directory / INDEX).exists():
        raise UserError(f"{place}: {_no_weights(directory)}")
    names = dict.fromkeys(_mapped(place, directory / INDEX).values())
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise UserError(f"{place}: {INDEX} names {outside[0]}, which is outside of the directory")
    if absent := [name for name in names if not (directory / name).exists()]:
        raise UserError(
            f"{place}: {INDEX} names {len(names)} files and {len(absent)} of them are absent, "
            f"{absent[0]} first; download or copy them again"
        )
    return [directory / name for name in names]


def _no_weights(directory: Path) -> str:
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    if shards:
        return (
            f"the weights in {directory} ({shards[0]}{', ...' if shards[1:] else ''}) are neither "
            f"{SINGLE} nor named by a {INDEX}, so they would not be loaded. Copy the index, or "
            "write the model again with `model.save_pretrained(directory)`."
        )
    return (
        f"no *.safetensors weights in {directory}. Pickled weights are not loaded; convert them "
        "with `model.save_pretrained(directory)`."
    )


def _mapped(place: str, index: Path) -> dict[str, str]:
    try:
        mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not mapped or not all(isinstance(name, str) for name in mapped.values()):
            raise ValueError("its weight_map is empty or holds what is no name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: {index.name} cannot be read: {error!r}") from error
    return mapped


def read_header(place: str, file: Path) -> dict[str, dict[str, Any]]:
    """Read what a safetensors file says that it holds, and whether it is all there.

    Args:
        place: The model, for errors.
        file: The file; only its first bytes are read.

    Returns:
        {name: {"dtype": as safetensors writes it, "shape": list}} of every tensor.

    Raises:
        UserError: If it is no such file, or shorter or longer than its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if POINTER.startswith(start) and start:
                raise ValueError("it is a pointer of git-lfs; run `git lfs pull`")
            if len(start) < LENGTH_BYTES or length > min(LONGEST_HEADER, size - LENGTH_BYTES):
                raise ValueError("its header is not there: invalid header length")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        ends = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if (expected := LENGTH_BYTES + length + ends) != size:
            raise ValueError(f"it has {size:,} bytes and its header asks for {expected:,}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{place}: the model does not load: {file.name} is damaged ({error}). "
            "Download or copy it again."
        ) from error
    return header


def same_numbers(place: str, directory: Path, one: str, other: str) -> bool:
    """True if two tensors of a model are equal byte for byte, or if one of them is not there."""
    found = []
    for file in weight_files(place, directory):
        tensors = read_header(place, file)
        with file.open("rb") as stream:
            start = LENGTH_BYTES + int.from_bytes(stream.read(LENGTH_BYTES), "little")
            for name in {one, other} & tensors.keys():
                begin, end = tensors[name]["data_offsets"]
                stream.seek(start + begin)
                found.append(stream.read(end - begin))
    return len(found) < 2 or found[0] == found[1]


def write_header(
    file: Path, tensors: Mapping[str, tuple[str, list[int]]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file that has holes instead of numbers, which take no room on a disk.

    Args:
        file: Written anew.
        tensors: {name: (dtype as safetensors writes it, shape)}.
        metadata: Its own, text by name.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # safetensors wants them without gaps, and the largest numbers first.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -_bytes(item[1][0])):
        begin, end = end, end + _bytes(dtype) * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        stream.truncate(LENGTH_BYTES + len(text) + end)


def _bytes(dtype: str) -> int:
    return next(size for end, size in BYTES.items() if dtype.endswith(end))
