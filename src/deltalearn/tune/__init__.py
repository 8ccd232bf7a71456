"""Pairs x student -> a tuned student: examples, reference cache, losses and the training loop."""

from deltalearn.formats.preferences import PairRow, read_pairs_from
from deltalearn.tune.dataset import Example, Examples
from deltalearn.tune.reference import ReferenceCache
from deltalearn.tune.tokenize import ExampleCounts, prepare_examples
from deltalearn.tune.train import tune

__all__ = [
    "Example",
    "ExampleCounts",
    "Examples",
    "PairRow",
    "ReferenceCache",
    "prepare_examples",
    "read_pairs_from",
    "tune",
]
