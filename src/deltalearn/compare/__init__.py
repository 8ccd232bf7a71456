"""`deltalearn compare`: two arms, each one or several evaluated models, on the same items.

arms        addresses -> result directories -> the two arms
comparable  may these numbers be set against each other at all?
differences  differences, intervals, p values; averages over benchmarks
result, verdict  what a comparison holds, and what may be said of it
table, forest  the terminal and the figure
power_plan  what the suite could see, before any run
command     the options, and the order of all this

Items are aligned by `evaluate.matching`, which the report of a run uses too.
"""
