"""Section `pairs`: rules by which pairs are made of answers, or pairs from outside."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deltalearn.recipe.base import SourceSpec, Spec


class PairRules(Spec):
    """Which pairs are dropped, and counted. Identical and empty answers never make a pair."""

    truncated: Literal["drop", "keep"] = Field("drop", description="Of answers cut at max_tokens.")
    reasoning: Literal["keep", "strip"] = Field(
        "keep", description="Thinking traces before answers."
    )
    max_length_difference: int | None = Field(
        None, ge=0, description="Most tokens by which the chosen answer may be longer."
    )


class PairsSource(SourceSpec):
    """Where pairs are read from, and in which columns they stand."""

    prompt_column: str | None = Field(None, description="Default: by its usual names.")
    chosen_column: str | None = Field(None, description="Default: by its usual names.")
    rejected_column: str | None = Field(None, description="Default: by its usual names.")
    chat_template: Literal["auto", "yes", "no"] = Field(
        "auto", description="For pairs of plain text; auto: if the student has one."
    )
    limit: int | None = Field(None, ge=1, description="Use the first so many pairs.")


class PairsSpec(PairRules, PairsSource):
    """Rules to make pairs of answers, or, with `source`, where to read pairs from; never both."""

    source: str | None = Field(  # type: ignore[assignment]
        None, min_length=1, description=PairsSource.model_fields["source"].description
    )

    @model_validator(mode="after")
    def _not_mixed(self) -> PairsSpec:
        given = self.source is not None
        others = PairRules.model_fields if given else PairsSource.model_fields
        why = "on pairs from outside (source)" if given else "without source"
        self.idle(f"{why}; remove it", *others)
        return self

    @property
    def rules(self) -> PairRules:
        """Rules by which pairs are made of answers."""
        return PairRules(**self.model_dump(include=set(PairRules.model_fields)))

    @property
    def outside(self) -> PairsSource | None:
        """Where pairs from outside are read, if they are."""
        if self.source is None:
            return None
        return PairsSource(**self.model_dump(include=set(PairsSource.model_fields)))
