"""The command `deltalearn theory`: options in; a table or one line of JSON, and figures, out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError, refuse_idle
from deltalearn.theory.closed_form import accuracy
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.options import Options
from deltalearn.theory.predictions import Measured, Theory, default_rate
from deltalearn.theory.simulate import NEEDS, Plan
from deltalearn.util.files import finite, write_json, write_text
from deltalearn.util.terminal import Column, Grid, console

OUT = Path("runs/theory")
PAGE, SETTING = "theory.html", "setting.json"  # in a directory of figures
LOSS_NAMES = {"preference": "preference training", "sft": "SFT", "dpo": "DPO"}


def run_theory(options: Options) -> None:
    """Print the numbers, and write the figures unless they are not wanted."""
    _reject_unused_options(options)
    writes = not options.no_figures and (not options.as_json or options.out is not None)
    if writes:
        _claim(options.out or OUT, options)
    geometry = geometry_of(options)
    theory = Theory.of(geometry, options.dimension)
    plan = _plan(options, geometry, theory)
    measured = Measured.of(geometry, plan)
    page = write_files(geometry, theory, measured, options.out or OUT) if writes else None
    if page:
        write_json(page.with_name(SETTING), _content(options))
    if options.as_json:
        print(json.dumps(as_json(geometry, theory, measured), allow_nan=False))
        return
    print_table(geometry, theory, measured)
    if page:
        print(f"page:    {page}\nfigures: {page.parent / 'figures'} (SVG and PNG)")


def _content(options: Options) -> dict[str, Any]:
    """All that decides what the figures show."""
    about = ("out", "update", "no_figures", "as_json")
    return {name: value for name, value in asdict(options).items() if name not in about}


def _claim(out: Path, options: Options) -> None:
    """UserError if a directory holds figures of other settings, and they are to stay."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: there is a file of this name; give a directory")
    if options.update or not (out / PAGE).exists():
        return
    try:
        known = json.loads((out / SETTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    changed = [name for name, value in _content(options).items() if known.get(name, ...) != value]
    if changed:
        raise UserError(
            f"{out}: holds figures of other settings ({', '.join(changed)}). Pass --update to "
            "replace them, or another --out"
        )


def _reject_unused_options(options: Options) -> None:
    """UserError for an option that changes nothing."""
    for name, (key, values) in NEEDS.items():
        if getattr(options, key) not in values:
            why = f"without --{key} {' or '.join(values)}"
            refuse_idle({f"--{name}": getattr(options, name)}, why)
    if options.no_figures:
        idle = {"--out": options.out, "--update": options.update}
        refuse_idle(idle, "with --no-figures: nothing is written")
    if options.as_json:
        why = "with --json, which writes none without --out"
        refuse_idle({"--no-figures": options.no_figures}, why)
        if options.out is None:
            refuse_idle({"--update": options.update}, why)


def geometry_of(options: Options) -> Geometry:
    """The geometry asked for; UserError if there is none such."""
    between = parse_errors(options.errors)
    if options.chosen == options.rejected and between[2] == 1:
        raise UserError(
            "the teachers are the same: no input on which they differ, nothing to learn"
        )
    return Geometry(options.student, options.chosen, options.rejected, options.norm, between)


def parse_errors(text: str) -> tuple[float, float, float]:
    """Read three correlations of errors: "student-chosen,student-rejected,chosen-rejected"."""
    try:
        c, r, cr = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"--errors {text!r}: give three correlations, those between the errors of student and "
            'chosen, student and rejected, chosen and rejected teacher, e.g. "0.2,0.2,0"'
        ) from None
    return c, r, cr


def _plan(options: Options, geometry: Geometry, theory: Theory) -> Plan:
    given = {name: getattr(options, name) for name in NEEDS}
    given = {name: value for name, value in given.items() if value is not None}
    shared = {f.name: getattr(options, f.name) for f in fields(Plan) if f.name in SHARED} | given
    plan = Plan(rate=1.0 if options.rate is None else options.rate, **shared)  # checks the rest
    if options.rate is not None:
        return plan
    return Plan(rate=default_rate(geometry, theory, plan), **shared)


SHARED = ("dimension", "trials", "steps", "batch", "loss", "temperature", "inputs", "seed")


def as_json(geometry: Geometry, theory: Theory, measured: Measured) -> dict[str, Any]:
    """All numbers; infinite or undefined ones are null."""
    plan = measured.plan
    simulation = {
        **{name: getattr(plan, name) for name in (*SHARED, "rate")},
        "pairs": plan.steps * plan.batch,
        **{f.name: getattr(measured, f.name) for f in fields(measured) if f.name != "plan"},
    }
    simulation |= {name: getattr(plan, name) for name in plan.used}
    return finite({"setting": asdict(geometry), **asdict(theory), "simulation": simulation})


def number(value: float, digits: int = 4) -> str:
    """A number for people: `−0.1234`, `∞`, or a dash where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def whole(value: float) -> str:
    """A count, rounded up, with thousands separators."""
    return number(value) if not math.isfinite(value) else f"{math.ceil(value):,}"


def _with_accuracy(cosine: float) -> str:
    if not math.isfinite(cosine):
        return number(cosine)
    return f"{number(cosine)}  (accuracy {100 * float(accuracy(cosine)):.2f} %)"


def rows(geometry: Geometry, theory: Theory, measured: Measured) -> list[tuple[str, str, str]]:
    """List the table's lines: (group, label, value)."""
    t, d = theory, f"{measured.plan.dimension:,}"
    line, many = "preference training", "dimensions and pairs"
    return [
        ("setting", "student's cosine a_0", _with_accuracy(geometry.student)),
        ("setting", "chosen teacher's cosine a_c", _with_accuracy(geometry.chosen)),
        ("setting", "rejected teacher's cosine a_r", _with_accuracy(geometry.rejected)),
        ("setting", "gap D = a_c − a_r", number(t.gap)),
        ("setting", "student's pull k = u_0·w", number(t.pull)),
        ("setting", "contrast N² = |w|²", number(t.contrast_squared)),
        ("setting", "inputs on which the teachers disagree", f"{100 * t.disagreement:.1f} %"),
        (line, "improves at first, D > a_0 k", "yes" if t.improves else "no"),
        (line, "best distance s*", number(t.best_step)),
        (line, "best cosine", _with_accuracy(t.best_cosine)),
        (line, "break-even distance", number(t.break_even_step)),
        (line, "cosine in the limit, D / N", _with_accuracy(t.limit_cosine)),
        ("SFT on the chosen labels", "improves at first", "yes" if t.sft_improves else "no"),
        ("SFT on the chosen labels", "best cosine", _with_accuracy(t.sft_best_cosine)),
        ("SFT on the chosen labels", "cosine in the limit, a_c", _with_accuracy(geometry.chosen)),
        (many, "dimensions for a 95 % chance to improve", whole(t.threshold_dimension)),
        (many, f"chance to improve in {d} dimensions", number(t.chance_to_improve)),
        (many, f"pairs for half the gain in {d} dimensions", whole(t.pairs_for_half)),
        *_simulation_rows(measured),
    ]


def _simulation_rows(measured: Measured) -> list[tuple[str, str, str]]:
    plan = measured.plan
    inputs = "" if plan.inputs == "normal" else f", {plan.inputs} inputs"
    name = f"simulation of {LOSS_NAMES[plan.loss]}{inputs}"
    size = f"{plan.steps * plan.batch:,} pairs, {plan.dimension:,} dimensions, {plan.trials} trials"
    return [
        (name, "size", size),
        (name, "cosine after the last step", _with_error(measured.cosine, measured.cosine_error)),
        (name, "cosine that theory expects there", number(measured.predicted_cosine)),
        (name, "accuracy", _with_error(measured.accuracy, measured.accuracy_error)),
    ]


def _with_error(mean: float, error: float) -> str:
    return number(mean) if math.isnan(error) else f"{number(mean)} ± {number(error, 5)} (s.e.)"


def print_table(geometry: Geometry, theory: Theory, measured: Measured) -> None:
    """The rows on standard output, a group at a time."""
    columns = [Column("", number=False), Column("", number=False, fold=24)]
    grid = Grid(columns, "Delta learning in logistic regression")
    for group, lines in groupby(rows(geometry, theory, measured), itemgetter(0)):
        grid.rule()
        grid.row(group, "", style="bold")
        for _, what, value in lines:
            grid.row(f"  {what}", value)
    grid.show(console())


def write_files(geometry: Geometry, theory: Theory, measured: Measured, out: Path) -> Path:
    """Figures as SVG and PNG under `out`/figures, and the page, whose path is returned."""
    from deltalearn.theory.figures import PANELS, Setting
    from deltalearn.theory.page import render_page
    from deltalearn.util.progress import progress

    setting = Setting(geometry, measured.plan.dimension, measured.plan.trials, measured.plan.seed)
    drawn = []
    with progress("figures", total=len(PANELS), unit="figures") as bar:
        for build in PANELS:
            panel = build(setting)
            panel.save(out / "figures")
            drawn.append(panel)
            bar.advance(1)
    page = out / PAGE
    table = rows(geometry, theory, measured)
    write_text(page, render_page(table, geometry, theory, measured, drawn))
    return page
