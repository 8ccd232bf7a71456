"""AlpacaEval 2: a judge compares a model's answers with those of a reference model.

Two halves that meet in annotations. Judging: `outputs` (answers and references, aligned by
instruction), `evaluator` (a published prompt and how its replies are read), `judge`, `annotate`,
`cache`. Numbers: `annotations` (read from a file, or made by a judge), `winrate`,
`length` (length-controlled win rate), `bootstrap`, `result` (rows, summary, table).

The judge is part of every number: win rates of two judges differ by several points for the same
answers. No table holds two, and a summary names its own.
"""
