"""What a GGUF file says that it holds, read without its numbers.

The package gguf reads it too, in minutes where a vocabulary is long; here it gives the sizes alone.

Format: the page gguf.md of https://github.com/ggml-org/ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4  # of a tensor of ggml
ALIGNMENT = 32  # of tensors, where the file does not say
UINT32, STRING, ARRAY = 4, 8, 9
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        metadata: Settings of model and tokenizer, by key.
        sizes: Number of numbers in each tensor, by name.
        pairs: Where each setting stands in the file, by key: first byte, and the one behind it.
        table: The same of the list of tensors.
        start: First byte of the tensors.
        end: The one behind them.
    """

    metadata: dict[str, Any]
    sizes: dict[str, int]
    pairs: dict[str, tuple[int, int]]
    table: tuple[int, int]
    start: int
    end: int

    @property
    def architecture(self) -> str:
        """The architecture, as llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the model, by key, without the architecture before it."""
        start = f"{self.architecture}."
        return {k.removeprefix(start): v for k, v in self.metadata.items() if k.startswith(start)}


def read_gguf_header(place: str, file: Path) -> GgufHeader:
    """Read the header of a GGUF file, and whether its numbers are all there.

    Args:
        place: The model, for errors.
        file: The file.

    Returns:
        Its header.

    Raises:
        UserError: If it is no GGUF file, cut off or damaged, a part of several, or of a version or
            with tensors that are unknown.
    """
    if (part := PART.search(file.name)) and int(part[1]) > 1:
        raise _in_parts(place, file.name)
    try:
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise UserError(
                    f"{place}: is no GGUF file (it does not begin with GGUF); give a model "
                    "directory, a hub id, or a file made by llama.cpp's converter"
                )
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header, size = _Reader(content).header(), len(content)
    except (struct.error, UnicodeDecodeError, _Damaged) as error:
        raise _damaged(place, file, str(error)) from error
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error}") from error
    if int(header.metadata.get("split.count", 1)) > 1:
        raise _in_parts(place, file.name)
    if size < header.end:
        why = f"it has {size:,} bytes and its header asks for {header.end:,}"
        raise _damaged(place, file, why)
    return header


def write_without_vocabulary(file: Path, header: GgufHeader, target: Path) -> None:
    """Write a GGUF file without the long lists of its tokenizer.

    transformers and the package gguf take minutes for these, several times over.

    Args:
        file: The whole one.
        header: Its header.
        target: Written anew.
    """
    metadata = header.metadata
    left_out = {k for k in metadata if k.startswith("tokenizer.") and isinstance(metadata[k], list)}
    key = f"{header.architecture}.vocab_size"
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    added = b"" if key in metadata else _number(key, len(tokens))
    alignment = int(metadata.get("general.alignment", ALIGNMENT)) or ALIGNMENT
    with file.open("rb") as source, target.open("wb") as out:
        kept = [span for name, span in header.pairs.items() if name not in left_out]
        number = len(kept) + bool(added)
        out.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(header.sizes), number) + added)
        for begin, end in (*kept, header.table):
            source.seek(begin)
            out.write(source.read(end - begin))
        out.write(bytes(-out.tell() % alignment))
        source.seek(header.start)
        shutil.copyfileobj(source, out, 1 << 24)


def _number(key: str, value: int) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", UINT32, value)


def _damaged(place: str, file: Path, why: str) -> UserError:
    return UserError(
        f"{place}: the model does not load: {file.name} is damaged or cut off ({why}). "
        "Download or copy it again."
    )


def _in_parts(place: str, name: str) -> UserError:
    return UserError(
        f"{place}: is one of several files of a model ({name}); join them with llama.cpp's "
        "`llama-gguf-split --merge FIRST-PART OUT.gguf` and give that file"
    )


class _Damaged(Exception):
    """What the file says cannot be."""


class _Reader:
    """Walks through the header of a file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(MAGIC)

    def header(self) -> GgufHeader:
        """All that stands before the tensors."""
        (version,) = self._take("I")
        if version not in VERSIONS:
            raise _Damaged(f"GGUF version {version} is unknown; known: 2 and 3")
        number, pairs = self._take("QQ")
        from gguf import GGML_QUANT_SIZES

        # Numbers in a block of each kind, and its bytes.
        kinds = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        metadata: dict[str, Any] = {}
        spans = {}
        for _ in range(pairs):
            begin, key = self._at, self._text()
            metadata[key] = self._value(*self._take("I"))
            spans[key] = begin, self._at
        if not isinstance(metadata.get("general.architecture"), str):
            raise _Damaged("it names no general.architecture")
        sizes, end, table = {}, 0, self._at
        for _ in range(number):
            name = self._text()
            (dimensions,) = self._take("I")
            if dimensions > MOST_DIMENSIONS:
                raise _Damaged(f"tensor {name} has {dimensions} dimensions")
            numbers = math.prod(self._take(f"{dimensions}Q"))
            kind, offset = self._take("IQ")
            if kind not in kinds:
                raise _Damaged(f"tensor {name} is of kind {kind}, which is unknown")
            block, width = kinds[kind]
            sizes[name] = numbers
            end = max(end, offset + numbers // block * width)
        alignment = int(metadata.get("general.alignment", ALIGNMENT)) or ALIGNMENT
        start = -(-self._at // alignment) * alignment
        return GgufHeader(metadata, sizes, spans, (table, self._at), start, start + end)

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _text(self) -> str:
        (length,) = self._take("Q")
        if length > len(self._content) - self._at:
            raise _Damaged("a text goes beyond its end")
        self._at += length
        return self._content[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._take(NUMBERS[kind])[0]
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            raise _Damaged(f"a value is of kind {kind}, which is unknown")
        inner, count = self._take("IQ")
        if count > len(self._content) - self._at:
            raise _Damaged("a list goes beyond its end")
        if inner in NUMBERS:
            return list(self._take(f"{count}{NUMBERS[inner]}"))
        if inner != STRING:
            raise _Damaged(f"a list holds values of kind {inner}, which is unknown")
        return [self._text() for _ in range(count)]
