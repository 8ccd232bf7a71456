"""Metrics sent to TensorBoard, Weights & Biases or trackio, through accelerate's trackers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deltalearn.errors import UserError
from deltalearn.recipe import TuneSpec
from deltalearn.util.failure import brief
from deltalearn.util.files import write_text
from deltalearn.util.progress import console

PROJECT = "deltalearn"
Track = Callable[[Mapping[str, float], int], None]


def tracker_arguments(settings: TuneSpec, out: Path) -> dict[str, Any]:
    """Choose the arguments of `Accelerator(...)` that `start_trackers` needs; none without one.

    Raises:
        UserError: If the tracker's package is missing, which accelerate itself would pass over.
    """
    name = settings.tracker
    if name == "none":
        return {}
    if find_spec(name) is None:
        raise UserError(
            f"tune.tracker {name} needs the package {name}, which is not installed; run "
            f"`pip install -e '.[{name}]'`, or leave tracker out"
        )
    return {"log_with": name, "project_dir": out / "tracker"}


def start_trackers(
    accelerator: Accelerator,
    settings: TuneSpec,
    out: Path,
    config: Mapping[str, Any],
    start: int = 0,
) -> tuple[Track, Callable[[], None]]:
    """Start the tracker of a run.

    Every process calls this and both results; the main process alone writes. A continued run goes
    on in the same curves; of the steps that it repeats, TensorBoard hides the first values and
    trackio shows both. TensorBoard and W&B write under `out`/tracker, trackio where TRACKIO_DIR
    says; WANDB_MODE (offline, disabled) is honoured.

    Args:
        accelerator: The run's processes.
        settings: The recipe's `tune` section.
        out: The run's folder.
        config: JSON values shown beside the curves, with the settings; `config["title"]` names the
            run.
        start: Steps already done.

    Returns:
        (track, finish): track(values, step) sends numbers, finish() closes the tracker. What fails
        in them is said once, and nothing more is sent.

    Raises:
        UserError: If the tracker does not start.
    """
    name = settings.tracker
    if name == "none":
        return lambda values, step: None, lambda: None
    if accelerator.is_main_process:
        shown = json.loads(json.dumps({**settings.model_dump(exclude=set()), **config}))
        _open(accelerator, name, out / "tracker", shown, start)

    failed = False

    def softly(work: Callable[[], None]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            work()
        except Exception as error:  # a network that is gone, say: log.jsonl has every number
            failed = True
            console.print(
                f"tune.tracker {name} has failed and gets nothing more ({brief(error)}); the "
                "training goes on, and log.jsonl has every number",
                markup=False,
            )

    def finish() -> None:
        # accelerator.end_training() would also end the process group, which is still needed.
        for tracker in accelerator.trackers:
            softly(tracker.finish)

    return lambda values, step: softly(lambda: accelerator.log(dict(values), step=step)), finish


def _open(
    accelerator: Accelerator, name: str, folder: Path, config: dict[str, Any], start: int
) -> None:
    if name == "tensorboard":
        options: dict[str, Any] = {"purge_step": start + 1 if start else None}
    else:
        run = _run_id(folder, start)
        options = {"name": config["title"], "config": config, "resume": "allow"}
        if name == "wandb":
            options |= {"id": run, "dir": folder}
        else:  # trackio knows a run by its name alone
            options["name"] += f" {run}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        accelerator.init_trackers(PROJECT, init_kwargs={name: options})
    except Exception as error:  # each package has its own kinds, and W&B may fail on the network
        raise UserError(
            f"tune.tracker {name} does not start: {error}. For W&B without an account or a network "
            "set WANDB_MODE=offline; or leave tracker out"
        ) from error
    if name == "tensorboard":
        # accelerate would open another TensorBoard run to hold these, one more at every resume.
        writer = accelerator.get_tracker(name, unwrap=True)
        writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")


def _run_id(folder: Path, start: int) -> str:
    """The id of the run that is continued, or a new one for a run from the start."""
    path = folder / "run-id"
    if start == 0 or not path.exists():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")
