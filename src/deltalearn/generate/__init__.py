"""Prompts x models -> responses, kept in a store that loses nothing and pays for nothing twice."""

from deltalearn.generate.stage import generate, plan_requests
from deltalearn.generate.store import ResponseStore

__all__ = ["ResponseStore", "generate", "plan_requests"]
