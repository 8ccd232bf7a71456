"""Real benchmark data, where it is: ../shared/data, or what DELTALEARN_DATA names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DELTALEARN_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")


def drop_data(folder: Path) -> Path:
    """The fixture, with a made-up train split of five passages."""
    made = {
        f"p{i}": {
            "passage": f"Passage number {i}.",
            "qa_pairs": [
                {
                    "question": f"Which one is {i}?",
                    "query_id": f"q{i}",
                    "answer": {"number": "", "date": {}, "spans": [f"one {i}", f"two {i}"]},
                }
            ],
        }
        for i in range(5)
    }
    (folder / "drop").mkdir()
    (folder / "drop" / "drop_dataset_train.json").write_text(json.dumps(made))
    fixture = (DATA / "drop_fixture" / "drop.json").read_text()
    (folder / "drop" / "drop_dataset_dev.json").write_text(fixture)
    return folder
