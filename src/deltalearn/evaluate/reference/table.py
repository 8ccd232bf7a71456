"""Per-item scores as Parquet: one row per item, what paired statistics need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltalearn.util.files import replacing


def write_scores(
    path: Path, rows: Sequence[dict[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Write rows atomically; return each metric's macro average and its mean per task."""
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows)), temporary, compression="zstd")
    means: dict[str, Any] = {}
    for metric in metrics:
        by_task = defaultdict(list)
        for row in rows:
            by_task[row["task"]].append(row[metric])
        tasks = {task: float(np.mean(values)) for task, values in by_task.items()}
        means[metric] = float(np.mean(list(tasks.values())))
        means[f"{metric}_by_task"] = tasks
    return means


def read_scores(path: Path) -> pa.Table:
    """Read a table written by `write_scores`."""
    return pq.read_table(path)
