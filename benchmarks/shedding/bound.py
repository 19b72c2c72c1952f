"""An upper bound of the value in time: the fractional scheduling problem as a linear program, solved by HiGHS.

It knows every arrival, every deadline and the slots of every moment. Of service times it knows what a class tells:
w = E[min(service, time remaining)], the time remaining being that at the unit's arrival; not how long each unit takes.
A fraction x of a unit's stage is worth that fraction of its value and takes x w of the slots between the unit's arrival
and its deadline; a stage's fraction is at most that of the stage before.

What it leaves out, always in the bound's favour: units are divisible, and run on several slots at once; stages
of a unit may overlap in time; pilots change units without a gap; nothing begun is lost with a pilot; a unit that is
stopped at its deadline counts as delivered, though its slot was spent. Time is in buckets: a unit may use the whole of
the bucket in which it arrives, and the whole of the one in which its deadline lies.

What it does not bound is gain from beginning late on purpose. Where service times have heavy tails, a unit that begins
shortly before its deadline gives more value for the time of a slot than a fresh one, as only short ones come to their
end and the long ones are stopped; w at the arrival does not know that. Such a gain is a choice of short units by their
length, which spoils statistics, and is limited by the share of stopped units that is shown beside the value.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from benchmarks.shedding.traces import Kind, Trace

BUCKETS_A_DEADLINE = 20


def bound(trace: Trace, buckets_a_deadline: int = BUCKETS_A_DEADLINE) -> float:
    """The largest value in time that the linear program finds for this trace."""
    problem = _Problem(trace, trace.deadline_s / buckets_a_deadline, buckets_a_deadline)
    return problem.solve()


class _Problem:
    """Columns: for each arrival bucket of a kind, the units done of each stage, and the work done in each bucket."""

    def __init__(self, trace: Trace, bucket_s: float, buckets_a_deadline: int) -> None:
        self.trace, self.bucket_s = trace, bucket_s
        self.buckets = math.ceil(trace.length_s / bucket_s)
        self.worth: list[float] = []
        self.most: list[float] = []
        self.entries: list[tuple[int, int, float]] = []
        self.limits = [_slot_time(trace, b * bucket_s, (b + 1) * bucket_s) for b in range(self.buckets)]
        found = Counter((unit.kind, int(unit.at / bucket_s)) for unit in trace.units)
        for (kind, bucket), number in sorted(found.items()):
            last = min(self.buckets - 1, bucket + buckets_a_deadline)
            self.add(trace.kinds[kind], bucket, last, number)

    def column(self, worth: float, most: float) -> int:
        self.worth.append(worth)
        self.most.append(most)
        return len(self.worth) - 1

    def row(self, limit: float) -> int:
        self.limits.append(limit)
        return len(self.limits) - 1

    def add(self, kind: Kind, bucket: int, last: int, number: int) -> None:
        """`number` units of a kind that arrive in a bucket, and may be worked on up to the bucket `last`."""
        left_s = self.trace.length_s - bucket * self.bucket_s
        work = self.row(0.0)
        before: int | None = None
        for stage, value in zip(kind.stages.values(), kind.stage_values(), strict=True):
            # What has not ended when the trace does counts for nobody.
            done = self.column(value, number * stage.below(left_s))
            self.entries.append((work, done, stage.expected_s(self.trace.deadline_s)))
            if before is not None:
                chain = self.row(0.0)
                self.entries += [(chain, done, 1.0), (chain, before, -1.0)]
            before = done
        for slot_time in range(bucket, last + 1):
            spent = self.column(0.0, math.inf)
            self.entries += [(work, spent, -1.0), (slot_time, spent, 1.0)]

    def solve(self) -> float:
        rows, columns, factors = zip(*self.entries, strict=True)
        matrix = csr_array((factors, (rows, columns)), shape=(len(self.limits), len(self.worth)))
        bounds = np.column_stack([np.zeros(len(self.most)), self.most])
        found = linprog(-np.array(self.worth), A_ub=matrix, b_ub=self.limits, bounds=bounds, method="highs")
        if not found.success:
            raise RuntimeError(f"the bound of {self.trace.name} was not found: {found.message}")
        return float(-found.fun)


def _slot_time(trace: Trace, begin: float, end: float) -> float:
    """Slot seconds between two moments, none after the end of the trace."""
    edges = [*trace.slots, (trace.length_s, 0)]
    spans = pairwise(edges)
    return sum(slots * max(0.0, min(end, until) - max(begin, since)) for (since, slots), (until, _) in spans)
