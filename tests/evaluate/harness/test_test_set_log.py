"""Protects the log of who saw test items, where several models are scored at a time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from deltalearn.evaluate.harness import test_set_log as log


def test_who_enters_at_the_same_time_enters_once(tmp_path, monkeypatch):
    read = log.TestSetLog._lines

    def slowly(written: log.TestSetLog) -> list[dict]:
        found = read(written)
        time.sleep(0.02)  # in which the others come
        return found

    monkeypatch.setattr(log.TestSetLog, "_lines", slowly)
    seen = [{"model": f"m{i % 2}", "benchmark": "b", "items": 3} for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: log.TestSetLog(tmp_path).enter(row, "name"), seen))
    rows = [json.loads(line) for line in (tmp_path / log.NAME).read_text().splitlines()]
    assert sorted(row["model"] for row in rows) == ["m0", "m1"]
    assert log.TestSetLog(tmp_path).test_models(["b"]) == 2
