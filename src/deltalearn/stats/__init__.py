"""Statistics of two models on the same questions, as pure functions of arrays.

What is compared is always a difference a - b that belongs to one item, so what makes an item hard
for both cancels (Miller, arXiv 2411.00640). `sampling` says how items were drawn (strata, clusters)
and gives means and standard errors; every other module is one question:

bootstrap    an interval without a normal curve; many benchmarks resampled together
mcnemar      0/1 scores: the exact test, and an interval of the same two counts
paired       the difference of two arms with interval and p, by the method that fits the scores
seeds        several training runs an arm, as a random effect
joint        two benchmarks that share their problems
holm         many tests at once
power        what could have been seen, before or after a run
"""
