"""How much value reaches its deadline when more comes than can be computed: ours, a bound, and the known disciplines.

`python -m benchmarks shedding` prints two lines for each trace, load and deadline, one for most value in time and one
for fresh results, the default: our smallest and median share of the bound over 20 seeds, the median and largest share
of the arrivals that were expired or stopped (whose probability nobody knows), the median latency of what was in time,
the best of the known disciplines and how far we are ahead of it, and what is not reached of what is wanted. Both are
judged alike.
`--quick` plays some cells on 3 seeds; `--cost`, `--station` and `--picture FILE` add what deciding costs, the same for
real, and the step response. 1 s is the mean service time of a unit, all its stages together; there are 16 slots.

Services spread by 0.3 of their mean (gamma), but for heavy tails (lognormal, sigma 1.5). Arrivals are Poisson, and what
ends before the trace does counts, for us, for the bound and for the disciplines alike.
"""
