"""Protects the pace of a tuning as its log tells it: steps, and seconds of one."""

from __future__ import annotations

import json

import pytest

from deltalearn.pipeline.tune_rate import Pace


def written(folder, seconds, start=1):
    lines = [json.dumps({"step": start + i, "seconds": s}) for i, s in enumerate(seconds)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def test_the_first_step_does_not_count(tmp_path):
    written(tmp_path, [60.0, 62.0, 64.0, 69.0])
    assert Pace.of(tmp_path) == Pace(4, 3.0)


@pytest.mark.parametrize("seconds", [[], [5.0], [5.0, 6.0]])
def test_too_few_steps_tell_nothing(tmp_path, seconds):
    written(tmp_path, seconds)
    assert Pace.of(tmp_path) == Pace(len(seconds), None)


def test_no_log(tmp_path):
    assert Pace.of(tmp_path / "absent") == Pace(0, None)


@pytest.mark.parametrize("torn", ['{"step": 4, "sec', '{"step": 4}', "[4, 9]", '{"step": "four"}'])
def test_what_was_torn_ends_the_log(tmp_path, torn):
    written(tmp_path, [10.0, 11.0, 12.0])
    with (tmp_path / "log.jsonl").open("a") as lines:
        lines.write(torn)
    assert Pace.of(tmp_path) == Pace(3, 1.0)
