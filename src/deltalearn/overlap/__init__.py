"""Texts that occur in other texts: whole, or by runs of words. It knows nothing of prompts."""
