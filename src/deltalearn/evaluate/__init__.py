"""Model x questions -> one score per item; arms compared in pairs, with intervals.

Import from the modules: `score.score_model` needs torch; `stats` and `table`, which reports read,
do not.
"""
