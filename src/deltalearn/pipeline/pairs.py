"""Pairs of two models' answers: the stage of a run, and `deltalearn pairs`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltalearn.errors import UserError
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.generate import STORE, Answers
from deltalearn.pipeline.stage import Stage, counts_line
from deltalearn.recipe import PairRules
from deltalearn.recipe.load import OPTIONS, explain


def pairs_name(chosen: str, rejected: str) -> str:
    """Name the stage of one pairing, which is its file in the run without the ending."""
    return f"pairs/{chosen}_over_{rejected}"


def pairs_stage(context: Context, chosen: str, rejected: str) -> Stage:
    """Make the stage that writes one pairing's Parquet file, a pure function of the store."""
    spec, name = context.recipe.pairs.rules, pairs_name(chosen, rejected)
    output = f"{name}.parquet"

    def work() -> dict[str, Any]:
        from deltalearn.pairs.candidates import candidates_of_requests
        from deltalearn.responses.store import ResponseStore

        sides = [Answers(context, context.generators[name]).requests for name in (chosen, rejected)]
        with ResponseStore(context.path(STORE)) as store:
            candidates = candidates_of_requests(store, *sides)
            return _write(context.path(output), candidates, chosen, rejected, spec)

    inputs = {
        "responses": [context.keys[f"generate/{name}"] for name in (chosen, rejected)],
        "spec": spec.model_dump(),
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
    from deltalearn.pairs.candidates import candidates_of_models
    from deltalearn.responses.store import ResponseStore

    try:
        spec = PairRules(**rules)
    except ValidationError as error:
        raise UserError("\n".join(explain(OPTIONS, error, PairRules))) from error
    _check_settings(settings)
    if out.suffix != ".parquet":
        raise UserError(f"{out}: pairs are written to a .parquet file")
    with ResponseStore(store, existing=True) as opened:
        candidates = candidates_of_models(opened, chosen, rejected, settings)
        counts = _write(out, candidates, chosen, rejected, spec)
    return f"{out}: {counts_line(counts)}"


def _write(
    out: Path, candidates: Iterable[Any], chosen: str, rejected: str, spec: PairRules
) -> dict[str, Any]:
    """Pairs by the rules of `spec`, into a file; their counts."""
    from deltalearn.pairs import PairCounts, build_pairs, write_pairs

    counts = PairCounts()
    write_pairs(out, build_pairs(candidates, counts, **spec.model_dump()), chosen, rejected)
    return counts.as_dict()


def _check_settings(settings: str | None) -> None:
    try:
        usable = settings is None or isinstance(json.loads(settings), dict)
    except ValueError as error:
        raise UserError(f"--settings {settings}: not JSON: {error}") from error
    if not usable:
        raise UserError(f'--settings {settings}: give an object, such as {{"max_tokens": 2048}}')
