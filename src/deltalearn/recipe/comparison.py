"""Section `compare`: which two arms are set against each other, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deltalearn.recipe.base import Listed, Seed, Spec


class CompareSpec(Spec):
    """Two arms: each a result directory, a directory of those (seeds), or RUN:ARM."""

    a: str = Field(min_length=1, description="Result directory, one with several, or RUN:ARM.")
    b: str = Field(min_length=1, description="What A is compared with, likewise.")
    also_a: Listed[tuple[str, ...]] = Field((), description="Another training seed of A.")
    also_b: Listed[tuple[str, ...]] = Field((), description="Another training seed of B.")
    benchmarks: Listed[tuple[str, ...]] = Field(
        (), description="Only this one; repeatable. Default: all that are shared."
    )
    mmlu: Literal["cot", "mc"] | None = Field(
        None, description="Which counts in the average; default: cot if it is there."
    )
    clusters: bool = Field(True, description="Take items of a cluster as drawn together.")
    draws: int = Field(10_000, ge=200, description="Of the bootstrap.")
    seed: Seed = Field(0, description="Of the bootstrap.")
    allow_different_settings: bool = Field(False, description="Note them instead of refusing.")
