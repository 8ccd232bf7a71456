"""Delta learning in logistic regression: closed form, simulation, figures (docs/theory.md).

Nothing here imports torch: numpy and scipy are enough.
"""
