"""Rows of the benchmarks, from local files or from the hub.

Local files lie in folders named as in `FOLDERS`, under the directory that `--data-dir`, lm_eval's
metadata `data_dir`, or the environment variable DELTALEARN_DATA_DIR names. With such a directory
nothing is asked of the network.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError

VARIABLE = "DELTALEARN_DATA_DIR"
Row = dict[str, Any]

FOLDERS = {  # of each benchmark, under the data directory
    "mmlu": "mmlu/test/*_test.csv (with a header; dev/*_dev.csv beside it)",
    "popqa": "popqa*/*.jsonl, and tulu3_fewshot/popqa_15shot.json",
    "math": "math*/test.jsonl",
    "gsm8k": "gsm8k/test.jsonl",
    "alpaca_eval": "alpaca_eval/reference_*.json",
    "ifeval": "ifeval/*.jsonl",
    "bbh": "bbh/bbh/*.json",
    "drop": "drop*/drop*.json (and drop*/*train*.json, for the three examples)",
    "truthfulqa": "truthfulqa/mc_task.json",
    "humaneval": "humaneval/HumanEval.jsonl*",
    "humanevalplus": "humanevalplus/HumanEvalPlus-OriginFmt*.jsonl*",
}


class NoData(UserError):
    """The data of a benchmark is not in the directory."""


def data_directory(given: str | Path | None) -> Path | None:
    """The directory of local data, None for the hub. UserError if it is not there."""
    name = given or os.environ.get(VARIABLE)
    if not name:
        return None
    directory = Path(name).expanduser()
    if not directory.is_dir():
        raise UserError(f"{directory}: the data directory is not there")
    return directory


def files(directory: Path, benchmark: str, *patterns: str) -> list[Path]:
    """The files of a benchmark by the first pattern that has any. NoData if none has."""
    for pattern in patterns:
        if found := sorted(directory.glob(pattern)):
            return found
    raise NoData(f"{directory}: no data of {benchmark}; it is looked for in {FOLDERS[benchmark]}")


def read(path: Path) -> list[Row]:
    """Rows of a .jsonl, .jsonl.gz, .json (a list) or .csv file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        if ".csv" in path.suffixes:
            return list(csv.DictReader(file))
        if ".jsonl" in path.suffixes:
            return [json.loads(line) for line in file if line.strip()]
        return json.load(file)


def hub(path: str, name: str | None, split: str) -> Iterator[Row]:
    """Rows of a split of a hub data set. UserError if it cannot be had."""
    import datasets

    try:
        yield from datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise UserError(
            f"{path}: the hub gave no data ({error}); give local files with --data-dir"
        ) from error


def hub_file(path: str, file: str) -> list[Row]:
    """Rows of one file of a hub data set, for those that are no tables."""
    from huggingface_hub import hf_hub_download

    try:
        return read(Path(hf_hub_download(path, file, repo_type="dataset")))
    except OSError as error:
        raise UserError(
            f"{path}: the hub gave no {file} ({error}); give local files with --data-dir"
        ) from error


def numbered(rows: Iterable[Row], prefix: str) -> Iterator[tuple[str, Row]]:
    """(identity by place, row): the place in the published order is what names an item."""
    for number, row in enumerate(rows):
        yield f"{prefix}{number}", row
