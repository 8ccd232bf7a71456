"""Protects what is sent to a tracker: every value at its step, once, and no secrets.

TensorBoard's files are read back. W&B and trackio run only where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest
from accelerate import Accelerator

from deltalearn.errors import UserError
from deltalearn.recipe import TuneSpec
from deltalearn.tune.trackers import start_trackers, tracker_arguments

SECRET = "not-for-the-eyes-of-others"


def send(name: str, out: Path, losses: dict[int, float], start: int = 0) -> None:
    """One process of a run: start the tracker, send `losses` by step, finish."""
    settings = TuneSpec(tracker=name, lr=3e-6, lora={"r": 4})
    accelerator = Accelerator(cpu=True, **tracker_arguments(settings, out))
    track, finish = start_trackers(accelerator, settings, out, {"title": "arm seed 1"}, start)
    for step, loss in losses.items():
        track({"loss": loss, "tokens": 10.0 * step}, step)
    finish()


def read_tensorboard(out: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tracker" / "deltalearn"))
    events.Reload()
    return events


def curve(events, name: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)]


def test_none_writes_nothing(tmp_path):
    assert tracker_arguments(TuneSpec(), tmp_path) == {}
    send("none", tmp_path, {1: 0.5})
    assert not list(tmp_path.iterdir())


def test_tensorboard_holds_the_values_at_their_steps(tmp_path):
    send("tensorboard", tmp_path, {1: 0.7, 2: 0.5, 3: 0.25})
    events = read_tensorboard(tmp_path)
    assert curve(events, "loss") == [(1, 0.7), (2, 0.5), (3, 0.25)]
    assert curve(events, "tokens") == [(1, 10), (2, 20), (3, 30)]


def test_a_tracker_that_fails_under_way_stops_nothing(tmp_path, monkeypatch, capfd):
    """The network of W&B is gone in the night: said once, and the training goes on."""

    def fails(*_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr(Accelerator, "log", fails)
    send("tensorboard", tmp_path, {1: 0.7, 2: 0.5, 3: 0.25})
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("tensorboard has failed and gets nothing more (ConnectionError: gone)") == 1


def test_tensorboard_is_one_run_and_shows_the_settings(tmp_path):
    send("tensorboard", tmp_path, {1: 0.7})
    send("tensorboard", tmp_path, {2: 0.5}, start=1)
    assert {p.parent.name for p in tmp_path.rglob("events*")} == {"deltalearn"}
    text = read_tensorboard(tmp_path).Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    shown = json.loads(text.decode().removeprefix("```json").removesuffix("```"))
    assert (shown["title"], shown["lr"], shown["lora"]["r"]) == ("arm seed 1", 3e-6, 4)


def test_steps_repeated_after_a_kill_replace_those_before(tmp_path):
    send("tensorboard", tmp_path, {1: 0.7, 2: 0.5, 3: 0.4})
    send("tensorboard", tmp_path, {3: 0.3, 4: 0.2}, start=2)
    events = read_tensorboard(tmp_path)
    assert curve(events, "loss") == [(1, 0.7), (2, 0.5), (3, 0.3), (4, 0.2)]


def test_finish_closes_the_file(tmp_path):
    settings = TuneSpec(tracker="tensorboard")
    accelerator = Accelerator(cpu=True, **tracker_arguments(settings, tmp_path))
    _, finish = start_trackers(accelerator, settings, tmp_path, {"title": "run"})
    writer = accelerator.get_tracker("tensorboard", unwrap=True)
    assert writer.file_writer is not None
    finish()
    assert writer.file_writer is None


def test_nothing_of_the_environment_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    send("tensorboard", tmp_path, {1: 0.7})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [p for p in files if SECRET.encode() in p.read_bytes()]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_starts(name, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "deltalearn.tune.trackers.find_spec", lambda n: None if n == name else found(n)
    )
    with pytest.raises(UserError, match=rf"{name}.*pip install -e '\.\[{name}\]'"):
        tracker_arguments(TuneSpec(tracker=name), tmp_path)


def test_a_tracker_that_does_not_start_is_the_user_s_business(tmp_path):
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker" / "deltalearn").write_text("a file where the folder belongs")
    with pytest.raises(UserError, match="tensorboard does not start"):
        send("tensorboard", tmp_path, {1: 0.7})


def test_wandb_offline_continues_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    send("wandb", tmp_path, {1: 0.7, 2: 0.5})
    send("wandb", tmp_path, {2: 0.5, 3: 0.4}, start=1)
    runs = list(tmp_path.glob("tracker/wandb/offline-run-*/run-*.wandb"))
    run = (tmp_path / "tracker" / "run-id").read_text()
    assert [path.name for path in runs] == [f"run-{run}.wandb"] * 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    send("wandb", tmp_path, {1: 0.7})  # from the start: another run
    assert (tmp_path / "tracker" / "run-id").read_text() != run


def test_trackio_continues_under_one_name(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    folder = Path(trackio.utils.TRACKIO_DIR)
    if folder.is_relative_to(Path.home() / ".cache"):
        pytest.skip("set TRACKIO_DIR to keep this out of your own runs")
    send("trackio", tmp_path, {1: 0.7, 2: 0.5})
    send("trackio", tmp_path, {3: 0.4}, start=2)
    name = "arm seed 1 " + (tmp_path / "tracker" / "run-id").read_text()
    with sqlite3.connect(folder / "deltalearn.db") as base:
        rows = base.execute("SELECT step, metrics FROM metrics WHERE run_name = ?", [name])
        assert [(step, json.loads(m)["loss"]) for step, m in rows] == [(1, 0.7), (2, 0.5), (3, 0.4)]
