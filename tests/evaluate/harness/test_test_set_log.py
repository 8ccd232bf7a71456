"""Protects the log of who saw test items: one for all that are set side by side."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltalearn.evaluate.harness import test_set_log as log


def test_who_enters_at_the_same_time_enters_once(tmp_path, monkeypatch):
    read = log._lines

    def slowly(file: Path) -> list[dict]:
        found = read(file)
        time.sleep(0.02)  # in which the others come
        return found

    monkeypatch.setattr(log, "_lines", slowly)
    seen = [{"model": f"m{i % 2}", "benchmark": "b", "items": 3} for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: log.TestSetLog(tmp_path).enter(row, "name"), seen))
    rows = [json.loads(line) for line in (tmp_path / log.NAME).read_text().splitlines()]
    assert sorted(row["model"] for row in rows) == ["m0", "m1"]
    assert log.TestSetLog(tmp_path).test_models(["b"]) == 2


LAYOUTS = [
    ["evals/delta/seed-0", "evals/delta/seed-1", "evals/sft/seed-0", "evals/base"],
    ["evals/base", "evals/delta/seed-0", "evals/delta/seed-1"],
    ["results/delta/seed-0", "results/base", "results/a/b/c"],
    ["one", "two"],
]


@pytest.mark.parametrize("outs", LAYOUTS)
@pytest.mark.parametrize("absolute", [False, True])
def test_all_that_are_set_side_by_side_are_counted(tmp_path, monkeypatch, outs, absolute):
    if absolute and outs[0].startswith("results"):
        pytest.skip("nothing says where such a tree begins")
    monkeypatch.chdir(tmp_path)
    for number, out in enumerate(outs, 1):
        place = tmp_path / out if absolute else Path(out)
        found = log.TestSetLog(log.folder_of_log(place))
        found.enter({"model": out, "benchmark": "b", "split": "test"}, out)
        assert found.test_models(["b"]) == number
    assert len(list(tmp_path.rglob(log.NAME))) == 1


def test_logs_of_an_earlier_version_are_counted(tmp_path):
    for folder in ("evals/delta", "evals"):
        log.TestSetLog(tmp_path / folder).enter({"model": folder, "benchmark": "b"}, "")
    place = tmp_path / "evals" / "sft" / "seed-0"
    assert log.TestSetLog(log.folder_of_log(place)).test_models(["b"]) == 2
