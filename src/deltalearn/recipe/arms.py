"""Section `arms`: the ways of tuning the student that a run compares."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from deltalearn.recipe.base import Spec
from deltalearn.recipe.pairs import PairsSource


class ArmSpec(Spec):
    """One way to tune the student.

    On pairs made of answers (`chosen` over `rejected`), on pairs from outside (`pairs`), or, with
    neither, the student untouched.
    """

    chosen: str | None = Field(None, description="The model whose answers are preferred.")
    rejected: str | None = Field(None, description="The model whose answers are not.")
    pairs: PairsSource | None = Field(None, description="Pairs from outside instead.")
    tune: dict[str, Any] = Field(
        default_factory=dict, description="Changes of the recipe's `tune`."
    )

    @model_validator(mode="after")
    def _sides(self) -> ArmSpec:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError(
                "an arm needs chosen and rejected, or neither; sft trains on the chosen side of "
                "the same pairs, so it names both too"
            )
        if self.chosen is not None and self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both {self.chosen!r}: there is no delta")
        if self.chosen is not None and self.pairs is not None:
            raise ValueError(
                "an arm has pairs of answers (chosen, rejected) or pairs from outside; give one"
            )
        if self.tune and not self.trains:
            raise ValueError("tune has no effect on an arm without chosen and rejected, or pairs")
        return self

    @property
    def pairing(self) -> tuple[str, str] | None:
        """(chosen, rejected) of an arm on pairs made of answers."""
        return (self.chosen, self.rejected) if self.chosen and self.rejected else None

    @property
    def trains(self) -> bool:
        """True if the student is tuned at all."""
        return self.chosen is not None or self.pairs is not None
