"""Responses -> preference pairs: a pure function of the store, every drop counted."""

from deltalearn.pairs.build import PairCounts, build_pairs
from deltalearn.pairs.parquet import write_pairs

__all__ = ["PairCounts", "build_pairs", "write_pairs"]
