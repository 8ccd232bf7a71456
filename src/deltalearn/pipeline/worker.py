"""One job in a process of its own, for a run that does several side by side.

Started by `deltalearn.pipeline.side_by_side` as `python -m deltalearn.pipeline.worker`. It reads
the job from the first line of its input, prepares, says so, and works once it is told to; when its
input ends, its parent is gone, and it ends too. What it says goes out in lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import nullcontext
from typing import Annotated, Any, TextIO

from pydantic import Field, TypeAdapter

from deltalearn.errors import UserError, is_disk_full, place_fault
from deltalearn.pipeline.evaluate_stage import ScoreJob
from deltalearn.pipeline.generate import AskJob
from deltalearn.pipeline.lock import Hold
from deltalearn.pipeline.stage import GO, Job
from deltalearn.pipeline.tune import TuneJob
from deltalearn.util.malloc import keep_freed_memory

AnyJob = Annotated[AskJob | TuneJob | ScoreJob, Field(discriminator="kind")]


def main() -> None:
    """Do the job that the input names."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message
    keep_freed_memory()
    try:
        _work(out)
    except UserError as error:
        _tell(out, error=str(error))
    except KeyboardInterrupt as error:
        _tell(out, stopped=str(error))
    except OSError as error:
        if fault := place_fault(error):
            _tell(out, error=fault)
            return
        if not is_disk_full(error):
            raise
        _tell(out, error=f"the disk is full ({error}); make room, then run it again to resume")


def _work(out: TextIO) -> None:
    job: Job = TypeAdapter(AnyJob).validate_json(sys.stdin.readline())
    doing = job.begin(lambda line: _tell(out, say=line))
    with Hold(job.held) if job.held else nullcontext():
        doing.prepare()
        _tell(out, prepared=True)
        if sys.stdin.readline().strip() != GO:
            return
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _tell(out, counts=doing.work())


def _end_with_parent() -> None:
    """Leave nothing at work behind: a run that is started again would meet it in its folders."""
    sys.stdin.read()
    os._exit(1)


def _tell(out: TextIO, **message: Any) -> None:
    print(json.dumps(message), file=out, flush=True)


if __name__ == "__main__":
    main()
