"""One YAML file becomes one typed, validated Recipe."""

from deltalearn.recipe.load import load_recipe, parse_override
from deltalearn.recipe.schema import (
    ArmSpec,
    EvaluateSpec,
    GenerateSpec,
    GeneratorSpec,
    ModelSpec,
    PairsSpec,
    PromptsSpec,
    Recipe,
    TuneSpec,
)

__all__ = [
    "ArmSpec",
    "EvaluateSpec",
    "GenerateSpec",
    "GeneratorSpec",
    "ModelSpec",
    "PairsSpec",
    "PromptsSpec",
    "Recipe",
    "TuneSpec",
    "load_recipe",
    "parse_override",
]
