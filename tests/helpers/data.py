"""Real benchmark data, which is not in the repository: where it is, and one reason to skip.

Of each benchmark whose licence allows it a few items are in `tests/data`, under the same names;
what needs no more reads `GOLDEN`. A test that reads the whole is marked
`@pytest.mark.data("mmlu/test", ...)`, or `@pytest.mark.data` for all of it; a helper asks `find`.
What is skipped is one line of pytest's summary, with its count.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DELTALEARN_DATA") or ROOT.parent / "shared" / "data")
GOLDEN = DATA if DATA.is_dir() else ROOT / "tests" / "data"  # the whole, or the excerpts
ABSENT = "benchmark data is not here: see docs/contributing.md, or set DELTALEARN_DATA"


def find(name: str = "") -> Path:
    """A file or folder of the data; skips the test where it is absent."""
    if not (DATA / name).exists():
        pytest.skip(ABSENT)
    return DATA / name


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
    fixture = (GOLDEN / "drop_fixture" / "drop.json").read_text()
    (folder / "drop" / "drop_dataset_dev.json").write_text(fixture)
    return folder
