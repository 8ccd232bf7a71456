"""Prompts x models -> responses, kept in a store that loses nothing and pays for nothing twice."""

from deltalearn.generate.stage import Engine, generate

__all__ = ["Engine", "generate"]
