"""Prompts: read, checked, deduplicated and counted."""

from deltalearn.prompts.read import PromptSet, read_prompts

__all__ = ["PromptSet", "read_prompts"]
