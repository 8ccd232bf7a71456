"""What the files of a model hold, by their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltalearn.lm.weights import read_header, weight_files


def stored_tensors(place: str, directory: Path) -> dict[str, dict[str, Any]]:
    """dtype and shape of every tensor in the weight files of a model."""
    return {
        name: tensor
        for file in weight_files(place, directory)
        for name, tensor in read_header(place, file).items()
    }
