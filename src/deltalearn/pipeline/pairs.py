"""Pairs out of a store of responses: what `deltalearn pairs` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltalearn.errors import UserError
from deltalearn.pipeline.directory import counts_line
from deltalearn.recipe.load import OPTIONS, explain
from deltalearn.recipe.schema import PairsSpec

Say = Callable[[str], None]


def write_pairs_of_store(
    store: Path,
    chosen: str,
    rejected: str,
    out: Path,
    settings: str | None = None,
    **rules: Any,
) -> str:
    """Pairs of two models' answers in `store`, into the Parquet file `out`; a line that counts.

    rules: as in the section `pairs` of a recipe.
    """
    from deltalearn.pairs import PairCounts, build_pairs, write_pairs
    from deltalearn.pairs.candidates import candidates_of_models
    from deltalearn.responses.store import ResponseStore

    try:
        spec = PairsSpec(**rules)
    except ValidationError as error:
        raise UserError(explain(OPTIONS, error, PairsSpec)) from error
    _check_settings(settings)
    if out.suffix != ".parquet":
        raise UserError(f"{out}: pairs are written to a .parquet file")
    counts = PairCounts()
    with ResponseStore(store, existing=True) as opened:
        candidates = candidates_of_models(opened, chosen, rejected, settings)
        write_pairs(out, build_pairs(candidates, counts, **spec.model_dump()), chosen, rejected)
    return f"{out}: {counts_line(counts.as_dict())}"


def _check_settings(settings: str | None) -> None:
    try:
        usable = settings is None or isinstance(json.loads(settings), dict)
    except ValueError as error:
        raise UserError(f"--settings {settings}: not JSON: {error}") from error
    if not usable:
        raise UserError(f'--settings {settings}: give an object, such as {{"max_tokens": 2048}}')
