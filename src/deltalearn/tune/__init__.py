"""Pairs x student -> a tuned student: examples, reference cache, losses and the training loop."""

from deltalearn.formats.preferences import PairReader, PairRow
from deltalearn.tune.dataset import Example, Examples
from deltalearn.tune.reference import ReferenceCache
from deltalearn.tune.tokenize import ExampleCounts, prepare_examples
from deltalearn.tune.train import tune

__all__ = [
    "Example",
    "ExampleCounts",
    "Examples",
    "PairReader",
    "PairRow",
    "ReferenceCache",
    "prepare_examples",
    "tune",
]
