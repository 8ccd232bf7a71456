"""AlpacaEval 2: a judge compares a model's responses with those of a reference model.

`pairs` aligns responses and references by instruction, a judge (`deltalearn.judge`) compares them,
`annotations` reads and writes what came of it in alpaca_eval's own layout. The numbers: `result`
(win rate, summary, a row per instruction) and `length_control` with its side files, `length_data`.
Why the package alpaca_eval is not called stands in docs/evaluation.md.
"""
