"""Pairs x student -> a tuned student: examples, reference cache, losses and the training loop."""

from deltalearn.tune.engine import tune
from deltalearn.tune.examples import Example, Examples
from deltalearn.tune.prepare import ExampleCounts, prepare_examples
from deltalearn.tune.reference import ReferenceCache
from deltalearn.tune.sources import PairRow, read_pairs_from

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
