"""Causal language models as Hugging Face directories: find, load, render, score, decode."""
