"""Runs the suite on a model through lm_eval, so that nothing is asked twice and every item is kept.

lm_eval is imported inside functions: it takes seconds, and is an extra.
"""
