"""Reads what an evaluation left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from deltalearn.evaluate.harness.results import items_file


def item_rows(directory: Path, benchmark: str) -> list[dict[str, Any]]:
    """The rows of a benchmark's items in a result directory."""
    return pq.read_table(items_file(directory, benchmark)).to_pylist()
