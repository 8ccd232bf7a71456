"""Prompts x models -> responses, kept in a store that loses nothing and pays for nothing twice."""

from deltalearn.generate.ladder import ladder_candidates, pair_candidates
from deltalearn.generate.requests import RequestPlan, Settings
from deltalearn.generate.stage import Engine, Prices, generate
from deltalearn.generate.store import ResponseStore

__all__ = [
    "Engine",
    "Prices",
    "RequestPlan",
    "ResponseStore",
    "Settings",
    "generate",
    "ladder_candidates",
    "pair_candidates",
]
