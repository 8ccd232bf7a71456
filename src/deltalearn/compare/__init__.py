"""`deltalearn compare`: two arms, each one or several evaluated models, on the same items.

runs        result directories and the arms that they make
settings    may these numbers be set against each other at all?
matching    the same items in the same order, on both sides
statistics  differences, intervals, p values; averages over benchmarks
words       what may be said
table, forest  the terminal and the figure
plan        what the suite could see, before any run
command     the options, and the order of all this
"""
