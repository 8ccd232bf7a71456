"""What `deltalearn theory` is told; the command line's options are made of these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

Loss = Literal["preference", "sft", "dpo"]
Inputs = Literal["normal", "elliptical", "heavy", "correlated"]


@dataclass(frozen=True)
class Options:
    """A setting, a simulation and what becomes of it; None: not given."""

    student: Annotated[float, "Student's cosine to the truth, a_0."] = 0.8
    chosen: Annotated[float, "Chosen teacher's cosine, a_c."] = 0.6
    rejected: Annotated[float, "Rejected teacher's cosine, a_r."] = 0.4
    norm: Annotated[float, "Student's norm r."] = 1.0
    errors: Annotated[
        str,
        "Correlations of errors: student-chosen, student-rejected, chosen-rejected; default 0,0,0.",
    ] = "0,0,0"
    dimension: Annotated[int, "Input dimensions d."] = 300
    trials: Annotated[int, "Simulated students."] = 20
    steps: Annotated[int, "Gradient steps of the simulation."] = 100
    batch: Annotated[int, "Pairs a step."] = 200
    rate: Annotated[float | None, "Learning rate; default: the last step is at the peak."] = None
    temperature: Annotated[float, "Of the teachers' labels; 0: hard."] = 0.0
    loss: Annotated[Loss, "What the students are trained by."] = "preference"
    beta: Annotated[float | None, "Of dpo; default 5."] = None
    inputs: Annotated[Inputs, "How inputs are distributed."] = "normal"
    freedom: Annotated[float | None, "Of elliptical and heavy inputs; default 5."] = None
    correlation: Annotated[float | None, "Of neighbours in correlated inputs; default 0.5."] = None
    seed: Annotated[int, "Of the simulations."] = 0
    out: Annotated[Path | None, "Where page and figures go; default runs/theory."] = None
    update: Annotated[bool, "Replace figures of other settings in --out."] = False
    no_figures: Annotated[bool, "Only print the table."] = False
    as_json: Annotated[bool, "Print one line of JSON; figures only with --out."] = False
