"""What a recipe may say: one file for every command, which asks for the sections that it needs."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from deltalearn.recipe.arms import ArmSpec
from deltalearn.recipe.base import Listed, Name, Seed, Spec
from deltalearn.recipe.comparison import CompareSpec
from deltalearn.recipe.evaluation import EvaluateSpec
from deltalearn.recipe.generation import GenerateSpec, PromptsSpec
from deltalearn.recipe.models import GeneratorSpec, ModelSpec
from deltalearn.recipe.pairs import PairsSpec
from deltalearn.recipe.tuning import ExpectSpec, TuneSpec

STUDENT = "student"


class Recipe(Spec):
    """An experiment, or the part of one that a single command does.

    student: the model that is tuned. models: those that answer prompts. pairs: how pairs are made
    of the answers, or where they come from. arms: what to train and compare. expect: what a dry
    run assumes.
    """

    name: Name = Field(description="Of the run, and of its directory in runs/.")
    seeds: Listed[tuple[Seed, ...]] = Field(
        (0, 1, 2), min_length=1, description="Of training, one student each."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where models run; auto: a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of weights and forwards."
    )
    day: str | None = Field(
        None, description="That chat templates take for today; default: of the first start."
    )
    student: ModelSpec | None = Field(None, description="The model that is tuned.")
    models: dict[Name, GeneratorSpec] = Field(
        default_factory=dict, description="Models that answer prompts, by a name of your choice."
    )
    prompts: PromptsSpec | None = Field(None, description="What they are asked.")
    generate: GenerateSpec = Field(GenerateSpec(), description="How they answer.")
    pairs: PairsSpec = Field(PairsSpec(), description="How answers make pairs, or pairs to read.")
    tune: TuneSpec = Field(TuneSpec(), description="How the student is tuned.")
    arms: dict[Name, ArmSpec] = Field(
        default_factory=dict, description="What is trained and compared, by a name of your choice."
    )
    evaluate: EvaluateSpec | None = Field(None, description="How all are scored.")
    compare: CompareSpec | None = Field(None, description="Of `deltalearn compare` alone.")
    expect: ExpectSpec | None = Field(None, description="What a dry run assumes.")

    @field_validator("day", mode="before")
    @classmethod
    def _is_day(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            return date.fromisoformat(value).isoformat()
        except (TypeError, ValueError):
            raise ValueError("expected a day such as 2026-11-26") from None

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed occurs twice; repeated seeds would count one run as two")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if STUDENT in self.models:
            raise ValueError(f"models.{STUDENT}: the name stands for the student; choose another")
        if joined := [m for m in self.models if "_over_" in m]:
            raise ValueError(f"models.{joined[0]}: a name with _over_ would confuse pair files")
        for name, questions in (self.evaluate.questions if self.evaluate else {}).items():
            if self.tune.dev and self.tune.dev.source == questions.source:
                raise ValueError(
                    f"tune.dev.source is evaluate.questions.{name}.source: what chooses when to "
                    "stop must not be what is reported; split the questions in two files"
                )
        if self.arms:
            self._check_arms()
        return self

    def _check_arms(self) -> None:
        untouched = [name for name, arm in self.arms.items() if not arm.trains]
        if untouched != ["base"]:
            raise ValueError(
                "arms: exactly one arm, named base, is the student untouched (`base: {}`); "
                f"found {untouched or 'none'}"
            )
        used = set()
        for name, arm in self.arms.items():
            for side in filter(None, (arm.chosen, arm.rejected)):
                if side not in (STUDENT, *self.models):
                    raise ValueError(
                        f"arms.{name}: no model is named {side!r}; "
                        f"there are {', '.join([STUDENT, *self.models])}"
                    )
                used.add(side)
        if unused := [m for m in self.models if m not in used]:
            raise ValueError(f"models.{unused[0]} is used by no arm; remove it")

    def tune_of(self, arm: str) -> TuneSpec:
        """The tuning settings of one arm: the recipe's, with the arm's own on top."""
        return self.tune.with_changes(self.arms[arm].tune)

    def model(self, name: str) -> GeneratorSpec:
        """The model spec behind a name used by an arm."""
        if name == STUDENT:
            assert self.student is not None
            return GeneratorSpec(**self.student.model_dump())
        return self.models[name]

    @property
    def generators(self) -> list[str]:
        """Names of the models whose answers some arm needs, in the order of first use."""
        return list(dict.fromkeys(side for pairing in self.pairings for side in pairing))

    @property
    def pairings(self) -> list[tuple[str, str]]:
        """Distinct (chosen, rejected) names, in the order of first use."""
        return list(dict.fromkeys(arm.pairing for arm in self.arms.values() if arm.pairing))

    @property
    def tuned_arms(self) -> list[str]:
        """Names of the arms that are trained, in recipe order."""
        return [name for name, arm in self.arms.items() if arm.trains]
