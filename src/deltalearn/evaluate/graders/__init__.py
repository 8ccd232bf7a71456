"""What an output is worth: pure functions from text to a score, one module per benchmark.

They know nothing of models, prompts or lm_eval, so that a verdict can be tried in a line.
"""
