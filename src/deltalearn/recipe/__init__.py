"""One YAML file becomes one typed, validated Recipe, for every command."""

from deltalearn.recipe.arms import ArmSpec
from deltalearn.recipe.commands import COMPARE, EVALUATE, GENERATE, RUN, TUNE, Command
from deltalearn.recipe.comparison import CompareSpec
from deltalearn.recipe.evaluation import EvaluateSpec
from deltalearn.recipe.generation import GenerateSpec, PromptsSpec, RaySpec, VllmSpec
from deltalearn.recipe.load import LoadedRecipe, load_recipe, parse_override
from deltalearn.recipe.models import GeneratorSpec, ModelSpec, PricesSpec, ServerSpec
from deltalearn.recipe.pairs import PairRules, PairsSource, PairsSpec
from deltalearn.recipe.schema import STUDENT, Recipe
from deltalearn.recipe.tuning import DevSpec, ExpectSpec, LoraSpec, TuneSpec

__all__ = [
    "COMPARE",
    "EVALUATE",
    "GENERATE",
    "RUN",
    "STUDENT",
    "TUNE",
    "ArmSpec",
    "Command",
    "CompareSpec",
    "DevSpec",
    "EvaluateSpec",
    "ExpectSpec",
    "GenerateSpec",
    "GeneratorSpec",
    "LoadedRecipe",
    "LoraSpec",
    "ModelSpec",
    "PairRules",
    "PairsSource",
    "PairsSpec",
    "PricesSpec",
    "PromptsSpec",
    "RaySpec",
    "Recipe",
    "ServerSpec",
    "TuneSpec",
    "VllmSpec",
    "load_recipe",
    "parse_override",
]
