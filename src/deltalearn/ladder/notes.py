"""Where siblings come from and how they stand: README.md of each, ladder.json, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deltalearn import __version__
from deltalearn.ladder.choose import Step
from deltalearn.ladder.options import LadderOptions, Sibling
from deltalearn.ladder.texts import Ids
from deltalearn.lm.locate import ModelFiles
from deltalearn.stats.paired import Paired, compare
from deltalearn.stats.sampling import Sampling
from deltalearn.util.files import digest, now, write_json, write_text
from deltalearn.util.terminal import Column, Grid, console
from deltalearn.util.text_format import plain, plural, signed

CRITERION = "least rise of the loss, one layer at a time, each time of all that are left"
MEASURE = "mean log-likelihood of a token in nats, the mean of texts, Student's t over texts"


@dataclass(frozen=True)
class Made:
    """The model, or a sibling that was made of it.

    Attributes:
        name: Of its folder; empty of the model itself.
        loglik: (n,) mean log-likelihood of a token of each text; None without texts.
        fingerprint: Of its files.
        sibling: How it was made; None of the model itself.
    """

    name: str
    loglik: np.ndarray | None
    fingerprint: str
    sibling: Sibling | None = None


def write_notes(
    options: LadderOptions,
    files: ModelFiles,
    made: Sequence[Made],
    steps: Sequence[Step],
    choose_on: Sequence[Ids],
    measure_on: Sequence[Ids],
) -> dict[str, Any]:
    """Write a README.md into the folder of every sibling, and ladder.json beside them.

    Args:
        options: What was asked.
        files: The model.
        made: The model and its siblings.
        steps: The choice of layers.
        choose_on: Texts that they were chosen on.
        measure_on: Texts that all were measured on.

    Returns:
        The content of ladder.json.
    """
    origin: dict[str, Any] = {
        "made_by": f"deltalearn ladder {__version__}",
        "made_at": now(),
        "base_model": files.name,
        "base_fingerprint": files.fingerprint,
    }
    if options.text is not None:
        origin["text"] = {
            "source": options.text,
            "chosen_on": len(choose_on),
            "measured_on": len(measure_on),
            "tokens_measured": sum(len(answer) for _, answer in measure_on),
            "fingerprint": digest([*choose_on, *measure_on]),
        }
    values: dict[str, Any] = dict(origin)
    if steps:
        finite = [{at: x for at, x in s.losses.items() if math.isfinite(x)} for s in steps]
        values["choice"] = {
            "criterion": CRITERION,
            "steps": [
                {"layer": step.layer, "losses": losses}
                for step, losses in zip(steps, finite, strict=True)
            ],
        }
    values["models"] = [_entry(one, files) for one in made]
    if measure_on:
        values["measure"] = MEASURE
        values |= _order(made)
    for one in made[1:]:
        write_text(options.out / one.name / "README.md", _readme(one, origin, values))
    write_json(options.out / "ladder.json", values)
    return values


def _entry(one: Made, files: ModelFiles) -> dict[str, Any]:
    found: dict[str, Any] = {"name": one.name or files.name, "fingerprint": one.fingerprint}
    if one.sibling is not None:
        how = asdict(one.sibling).items()
        found |= {"what": one.sibling.what(), **{k: v for k, v in how if v is not None}}
    if one.loglik is not None:
        found["loglik"] = _estimate(one.loglik)
    return found


def _estimate(values: np.ndarray) -> dict[str, float]:
    found = Sampling(len(values)).estimate(values)
    low, high = found.interval()
    return {"mean": float(found.value), "lo": float(low), "hi": float(high)}


def _order(made: Sequence[Made]) -> dict[str, Any]:
    """All from the best to the worst, with the difference of each from the one above it."""
    measured = [(one, one.loglik) for one in made if one.loglik is not None]
    ranked = sorted(measured, key=lambda pair: -float(pair[1].mean()))
    steps = []
    for (upper, better), (lower, worse) in pairwise(ranked):
        name, sampling = f"{upper.name}:{lower.name}", Sampling(len(better))
        found = compare(Paired(name, worse[None], better[None], sampling))
        ends = found.test.ends
        steps.append({
            "upper": upper.name, "lower": lower.name, "difference": found.difference,
            "lo": ends and ends[0], "hi": ends and ends[1],
            "shown": ends is not None and ends[1] < 0,
        })  # fmt: skip
    return {
        "order": [one.name for one, _ in ranked],
        "steps": steps,
        "in_order": all(step["shown"] for step in steps),
    }


def _readme(one: Made, origin: dict[str, Any], values: dict[str, Any]) -> str:
    """A model card: what it is, for programs and for people."""
    assert one.sibling is not None  # of a sibling alone
    (entry,) = (e for e in values["models"] if e["name"] == one.name)
    head = {**origin, **{k: v for k, v in entry.items() if k != "name"}}
    if one.sibling.name.startswith("without-") and "choice" in values and one.sibling.dropped:
        chosen = [s["layer"] for s in values["choice"]["steps"]][: len(one.sibling.dropped)]
        if sorted(chosen) == list(one.sibling.dropped):
            head["criterion"], head["chosen_in_this_order"] = CRITERION, chosen
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {one.name}",
        "",
        f"{origin['base_model']} {one.sibling.what()}: a weaker model on purpose, made by "
        "`deltalearn ladder` for experiments. What the model's licence asks holds for it too.",
    ]
    if "loglik" in entry:
        texts = f"{plural(values['text']['measured_on'], 'text')} of {values['text']['source']}"
        shown, best = _shown(entry["loglik"]), _shown(values["models"][0]["loglik"])
        lines += ["", f"On {texts}: {shown}, the model itself {best} ({MEASURE})."]
    return "\n".join(lines) + "\n"


def _shown(entry: dict[str, float]) -> str:
    return f"{plain(entry['mean'], 3)} [{plain(entry['lo'], 3)}, {plain(entry['hi'], 3)}]"


def print_ladder(values: dict[str, Any], out: Path) -> None:
    """Print the siblings, the best first if they were measured, and whether the order is shown.

    Args:
        values: The content of ladder.json.
        out: Where they are.
    """
    entries = {entry["name"]: entry for entry in values["models"]}
    base = values["models"][0]["name"]
    below = {step["lower"]: step for step in values.get("steps", ())}
    columns = [Column("model", number=False), Column("what it is", number=False, fold=16)]
    if "order" in values:
        columns += [Column("log-likelihood per token"), Column("from the one above", keep=1)]
    table = Grid(columns, elsewhere=str(out / "ladder.json"))
    for name in values.get("order", ["", *list(entries)[1:]]):
        entry = entries[name or base]
        cells = [name or base, entry.get("what", "the model itself")]
        if "loglik" in entry:
            step = below.get(name)
            cells += [_shown(entry["loglik"]), _step(step) if step else ""]
        table.row(*cells)
    table.show(console())
    if "order" in values:
        doubtful = [s for s in values["steps"] if not s["shown"]]
        names = ", ".join(f"{s['lower'] or base} below {s['upper'] or base}" for s in doubtful)
        print(f"NOT shown: {names}" if doubtful else "in order: every interval is clear of zero")
        if values["order"][0] != "":
            print(f"{values['order'][0]} has a higher log-likelihood than the model itself")
    print(f"written to {out}")


def _step(step: dict[str, Any]) -> str:
    if step["lo"] is None:
        return signed(step["difference"], 3)
    return f"{signed(step['difference'], 3)} [{signed(step['lo'], 3)}, {signed(step['hi'], 3)}]"
