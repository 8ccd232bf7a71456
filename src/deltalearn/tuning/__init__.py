"""Tune one model on given pairs: what `deltalearn tune` does, without a pipeline around it.

`run.py`: the stage, in one process or several; `inputs.py`: pairs as ids; `outlook.py`: what a run
would take and see.
"""

from deltalearn.tuning.outlook import check_modes, preview_pairs, report_dry_run
from deltalearn.tuning.run import run_tune

__all__ = ["check_modes", "preview_pairs", "report_dry_run", "run_tune"]
