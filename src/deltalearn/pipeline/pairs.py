"""Pairs of two models' answers: the stage of a run, and `deltalearn pairs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deltalearn.errors import UserError
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.generate import STORE, Answers
from deltalearn.pipeline.stage import Stage, counts_line
from deltalearn.recipe import PairRules
from deltalearn.recipe.faults import explain
from deltalearn.recipe.load import OPTIONS
from deltalearn.responses.store import ResponseStore

if TYPE_CHECKING:
    from deltalearn.pairs import PairCounts


REMEDIES = {
    "missing": "let both models answer the same prompts with the same number of samples",
    "error": "see `deltalearn responses errors`, and ask again with --retry-errors",
    "empty": "read some (`deltalearn responses export`): a wrong chat template, or reasoning that "
    "never ended, has no answer",
    "truncated": "raise generate.max_tokens, or keep them (--truncated keep, pairs.truncated)",
    "identical": "both models say the same: are they the same model? Take others, or sample "
    "(generate.temperature)",
    "length_difference": "raise pairs.max_length_difference (--max-length-difference)",
}


def pairs_name(chosen: str, rejected: str) -> str:
    """Name the stage of one pairing, which is its file in the run without the ending."""
    return f"pairs/{chosen}_over_{rejected}"


def pairs_stage(context: Context, chosen: str, rejected: str) -> Stage:
    """Make the stage that writes one pairing's Parquet file, a pure function of the store."""
    spec, name = context.recipe.pairs.rules, pairs_name(chosen, rejected)
    output = f"{name}.parquet"

    def work() -> dict[str, Any]:
        from deltalearn.pairs.candidates import candidates_of_requests

        sides = [Answers(context, context.generators[name]).requests for name in (chosen, rejected)]
        with ResponseStore(context.path(STORE)) as store:
            candidates = candidates_of_requests(store, *sides)
            return _write(context.path(output), candidates, chosen, rejected, spec, template)

    student = context.recipe.student
    template = student.template if student else {}
    inputs = {
        "responses": [context.keys[f"generate/{name}"] for name in (chosen, rejected)],
        "spec": spec.model_dump(),
        **({"template": template} if template else {}),
    }
    return Stage(name, inputs, (output,), work)


def write_pairs_of_store(
    store: Path,
    chosen: str,
    rejected: str,
    out: Path,
    settings: str | None = None,
    **rules: Any,
) -> str:
    """Write pairs of two models' answers.

    Args:
        store: The answers, responses.sqlite.
        chosen: Name of the model whose answers are preferred.
        rejected: Name of the other.
        out: The .parquet file.
        settings: JSON, whole or a part: which answers, if of several kinds.
        rules: As in the section `pairs` of a recipe.

    Returns:
        A line of counts for people.

    Raises:
        UserError: If an argument is none, or the store has not these models' answers.
    """
    from deltalearn.pairs.candidates import candidates_of_models, shared_template

    try:
        spec = PairRules(**rules)
    except ValidationError as error:
        raise UserError("\n".join(explain(OPTIONS, error, PairRules))) from error
    _check_settings(settings)
    if out.suffix != ".parquet":
        raise UserError(f"{out}: pairs are written to a .parquet file")
    with ResponseStore(store, existing=True) as opened:
        candidates = candidates_of_models(opened, chosen, rejected, settings)
        template = shared_template(opened, chosen, rejected, settings)
        counts = _write(out, candidates, chosen, rejected, spec, template)
    return f"{out}: {counts_line(counts)}"


def _write(
    out: Path,
    candidates: Iterable[Any],
    chosen: str,
    rejected: str,
    spec: PairRules,
    template: Mapping[str, Any],
) -> dict[str, Any]:
    """Pairs by the rules of `spec`, into a file; their counts."""
    from deltalearn.pairs import PairCounts, build_pairs, write_pairs

    counts = PairCounts()
    pairs = build_pairs(candidates, counts, **spec.model_dump())
    first = next(pairs, None)
    if first is None:
        raise UserError(_no_pair(counts, chosen, rejected))
    write_pairs(out, chain([first], pairs), chosen, rejected, template)
    return counts.as_dict()


def _no_pair(counts: PairCounts, chosen: str, rejected: str) -> str:
    """Say what dropped every pair, and what can be done about each reason."""
    head = f"no pair of {chosen} over {rejected} is left of {counts.candidates:,} candidates"
    if not counts.candidates:
        return f"{head}: no prompt has answers of both"
    lines = []
    for reason, number in counts.dropped.most_common():
        by_side = [(*key.split(":"), n) for key, n in sorted(counts.by_side.items())]
        sides = ", ".join(f"{side} {n:,}" for of, side, n in by_side if of == reason)
        told = f" ({sides})" if sides else ""
        lines.append(f"  {reason.replace('_', ' ')}: {number:,}{told}; {REMEDIES[reason]}")
    return "\n".join([head, *lines])


def _check_settings(settings: str | None) -> None:
    try:
        usable = settings is None or isinstance(json.loads(settings), dict)
    except ValueError as error:
        raise UserError(f"--settings {settings}: not JSON: {error}") from error
    if not usable:
        raise UserError(f'--settings {settings}: give an object, such as {{"max_tokens": 2048}}')
