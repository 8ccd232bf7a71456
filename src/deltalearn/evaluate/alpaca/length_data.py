"""The two files that the published length control needs beside the annotations.

Both are in the Hugging Face dataset tatsu-lab/alpaca_eval. df_gamed.csv has the judged rows of two
baselines that game length, with features and an `instruction_difficulty` per instruction;
instruction_difficulty.csv has the latter once more. The difficulty is that of df_gamed.csv, as in
alpaca_eval 0.6.6; the other file is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalearn.errors import UserError
from deltalearn.util.files import file_digest

REPOSITORY = "tatsu-lab/alpaca_eval"
GAMED_FILE, DIFFICULTY_FILE = "df_gamed.csv", "instruction_difficulty.csv"
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")
AGREE = 1e-4


@dataclass(frozen=True)
class LengthControlData:
    """difficulty: (N,), of each instruction in the order of the reference outputs.

    The gamed baselines' rows: score (g,) in [0, 1], scaled_delta (g,), the length difference over
    its deviation, and index (g,), the instruction. sha256: of the files used, by name.
    """

    difficulty: np.ndarray
    gamed_score: np.ndarray
    gamed_scaled_delta: np.ndarray
    gamed_index: np.ndarray
    sha256: dict[str, str]
    notes: tuple[str, ...] = ()


def find_length_data() -> LengthControlData | None:
    """The side files from the Hugging Face hub or its cache; None if neither has them."""
    from huggingface_hub import hf_hub_download

    try:
        paths = [
            Path(hf_hub_download(REPOSITORY, name, repo_type="dataset"))
            for name in (GAMED_FILE, DIFFICULTY_FILE)
        ]
    except Exception:  # offline, refused, moved: whatever it is, the minimal variant remains
        return None
    return read_length_data(*paths)


def local_length_data(directory: Path) -> LengthControlData | None:
    """The side files in `directory`, without any network; None if df_gamed.csv is not there."""
    gamed, difficulty = directory / GAMED_FILE, directory / DIFFICULTY_FILE
    if not gamed.is_file():
        return None
    return read_length_data(gamed, difficulty if difficulty.is_file() else None)


def read_length_data(gamed: Path, difficulty: Path | None = None) -> LengthControlData:
    """Read the side files. UserError if they are not what alpaca_eval 0.6.6 reads."""
    columns = _columns(gamed, COLUMNS)
    kept = ~np.isnan(columns["preference"])  # as alpaca_eval drops them
    index = columns["index"].astype(int)
    known, first = np.unique(index, return_index=True)
    if not np.array_equal(known, np.arange(len(known))):
        raise UserError(f"{gamed}: the column index must number the instructions from 0")
    found = columns["instruction_difficulty"][first]
    sha256 = {GAMED_FILE: file_digest(gamed)}
    notes: tuple[str, ...] = ()
    if difficulty is not None:
        sha256[DIFFICULTY_FILE] = file_digest(difficulty)
        other = _columns(difficulty, ("instruction_difficulty",))["instruction_difficulty"]
        if len(other) != len(found) or not np.abs(other - found).max() <= AGREE:
            notes = (
                f"{DIFFICULTY_FILE} does not agree with {GAMED_FILE}, whose difficulties are used",
            )
    score = columns["preference"][kept]
    if not ((score >= 0) & (score <= 1)).all():
        raise UserError(f"{gamed}: preference must be in [0, 1] here")
    return LengthControlData(
        found, score, columns["std_delta_len"][kept], index[kept], sha256, notes
    )


def _columns(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    from pyarrow import ArrowException, csv, float64

    try:
        table = csv.read_csv(path)
        return {name: table[name].cast(float64()).to_numpy() for name in wanted}
    except (OSError, ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not the file of the dataset {REPOSITORY} ({error}); it needs the columns "
            f"{', '.join(wanted)}"
        ) from None
