"""A judge: a language model that is shown two responses to a prompt and says which is better.

`evaluator` is the published prompt and how its replies are read, `judge` what a model is shown and
what its reply means, `replies` the reading, `verdicts` what is kept, `annotate` and `cache` the
asking: each comparison once. AlpacaEval's numbers are made of it (`evaluate/alpaca/`).

The judge is part of every number: two judges differ by several points on the same responses. So no
table holds two, and every verdict carries its own.
"""
