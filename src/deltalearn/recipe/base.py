"""What all parts of a recipe share: the base class and the types of their keys.

Every key has an effect; a key that would have none is an error. Errors raised by the parts name the
key; `deltalearn.recipe.load` adds the file and the nearest valid one. A field's description is the
help of the option that is made of it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean, which at 1 would never move
T = TypeVar("T")
Listed = Annotated[
    T, Field(strict=False)
]  # a tuple, which YAML writes as a list; items stay strict


class Spec(BaseModel):
    """Base of all recipe parts: unknown keys are errors, values are not coerced silently."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True
    )
    MAIN: ClassVar[str | None] = None  # the key that a text in place of the section is for

    def changed(self, key: str) -> bool:
        """True if `key` was given a value other than its default.

        (A key written out with its default value is harmless, so a resolved recipe loads again.)
        """
        default = type(self).model_fields[key].get_default(call_default_factory=True)
        return key in self.model_fields_set and getattr(self, key) != default

    def idle(self, why: str, *keys: str) -> None:
        """Raise ValueError for the first of some keys that was changed: it would have no effect.

        Args:
            why: Beside or without what, and what to do about it.
            keys: Of this part.
        """
        for key in keys:
            if self.changed(key):
                raise ValueError(f"{key} has no effect {why}")


class SourceSpec(Spec):
    """Where rows of other people are read from, whatever they hold."""

    MAIN = "source"

    source: str = Field(
        min_length=1, description="JSON, CSV, Parquet, a folder of them, or a hub id."
    )
    split: str | None = Field(
        None, description="Of a hub data set, or a folder with several; default train."
    )
    ignore_columns: Listed[tuple[str, ...]] = Field(
        (), description="Leave out a column that would change the question; repeatable."
    )
