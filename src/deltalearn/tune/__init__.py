"""Pairs x student -> a tuned student: examples, reference cache, losses and the training loop."""

from deltalearn.tune.examples import Example, ExampleCounts, prepare_examples
from deltalearn.tune.loop import tune
from deltalearn.tune.reference import ReferenceCache

__all__ = ["Example", "ExampleCounts", "ReferenceCache", "prepare_examples", "tune"]
