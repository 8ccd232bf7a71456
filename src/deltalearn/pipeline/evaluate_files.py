"""AlpacaEval from files alone: answers and verdicts that others made, no model and no judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalearn import __version__
from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import match, read_annotations
from deltalearn.evaluate.alpaca.pairs import Output, pair_up, read_outputs
from deltalearn.evaluate.alpaca.result import item_rows, summary
from deltalearn.evaluate.harness.results import read_results, write_items, write_results
from deltalearn.evaluate.harness.terminal import line
from deltalearn.evaluate.tulu3.sources import data_directory
from deltalearn.evaluate.tulu3.suite import BY_NAME
from deltalearn.judge.verdicts import Annotation
from deltalearn.pipeline.judge import FOLDER, side_files
from deltalearn.pipeline.lock import Hold
from deltalearn.pipeline.stage import Say
from deltalearn.util.files import digest

NAME = "alpaca_eval"


def evaluate_files(
    annotations: Path,
    outputs: Path | None = None,
    out: Path | None = None,
    *,
    data_dir: str | None = None,
    name: str | None = None,
    update: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Compute the win rates of verdicts in a file, into a result directory that `compare` reads.

    Args:
        annotations: In alpaca_eval's layout, with both answers of each comparison.
        outputs: The model's answers; it is made sure that just these were judged.
        out: The result directory; default evals/<name>.
        data_dir: Local data, with the reference's answers and the side files of the length control.
        name: Of the model, in tables; default: as the verdicts call it.
        update: Replace results of something else.
        say: Gets a line for everything worth telling.

    Returns:
        The content of results.json.

    Raises:
        UserError: If the files do not belong together, or `out` holds other results.
    """
    found = _in_order(read_annotations(annotations), outputs, data_directory(data_dir))
    names = sorted({one.pair.generator_2 for one in found})
    if len(names) > 1:
        raise UserError(f"{annotations}: verdicts of several models: {', '.join(names)}")
    shown = name or names[0]
    out = out or Path("evals") / shown.replace("/", "_")
    answers = [[one.instruction, one.pair.output_2] for one in found]
    model = {"name": shown, "path": str(annotations), "identity": f"answers:{digest(answers)}"}
    with Hold(out):
        if (out / "results.json").is_file() and not update:
            known = read_results(out)["model"].get("identity")
            if known != model["identity"]:
                raise UserError(
                    f"{out}: has results of something else; choose another --out, or --update to "
                    "replace them"
                )
        entry = summary(found, side_files(data_directory(data_dir)))
        asked: dict[str, Any] = {
            "shots": 0,
            "chat": True,
            "max_tokens": None,
            "stops": [],
            "constant": False,
        }
        entry = {"title": BY_NAME[NAME].title, "kind": "judged", "bounded": True, **asked, **entry}
        write_items(out, NAME, item_rows(found))
        results = {
            "model": model,
            "backend": "files",
            "split": "test",
            "limit": None,
            "data": "files",
            "versions": {"deltalearn": __version__},
            "benchmarks": {NAME: entry},
            "not_run": {},
            "average": None,
        }
        write_results(out, results)
    say(line(entry["title"], entry))
    return results


def _in_order(
    annotations: Sequence[Annotation], outputs: Path | None, data: Path | None
) -> Sequence[Annotation]:
    """The verdicts in the order of the reference, of the answers that are given, if any are."""
    references = [
        Output(a.instruction, a.pair.output_1, a.pair.generator_1, a.pair.dataset)
        for a in annotations
    ]
    files = sorted((data / FOLDER).glob("reference_*.json")) if data is not None else []
    if files:
        references = read_outputs(files[0])
    answers = (
        [Output(a.instruction, a.pair.output_2, a.pair.generator_2) for a in annotations]
        if outputs is None
        else read_outputs(outputs)
    )
    return match(annotations, pair_up(answers, references))
