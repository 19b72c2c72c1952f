"""One cell of the table: a recipe at one load and deadline, over many seeds, with all that is compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.shedding import disciplines, ours
from benchmarks.shedding.bound import bound
from benchmarks.shedding.traces import Trace, make

WANTED_SHARE = {"steady": 0.95, "bursty": 0.95, "ramp": 0.95, "two classes": 0.95, "visits": 0.95}
WANTED_SHARE_ELSEWHERE = 0.90
MOST_EXPIRED = {"steady": 0.01, "ramp": 0.01}
MOST_EXPIRED_ELSEWHERE = 0.05
MOST_BEHIND = 0.01
FRESH_SEEDS = 4
"""The policy `fresh` is played for comparison, on so many seeds."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One of our policies on one seed."""

    value: float
    """Share of the bound."""
    expired: float
    """Share of the arrivals that were expired or stopped."""
    latency_s: float
    """Median, of what was done in time."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """One seed: shares of the bound, and of the arrivals."""

    seed: int
    arrivals: int
    bound: float
    ours: Mapping[str, Policy]
    rivals: Mapping[str, float]
    stopping: float
    """Earliest deadline that stops what is late: share of the bound,"""
    stopped: float
    """and share of the arrivals that it stopped."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All seeds of a cell."""

    trace: str
    load: float
    deadline_s: float
    played: Sequence[Played] = field(repr=False)

    @property
    def least(self) -> float:
        """The smallest share of the bound that the policy `value` reached."""
        return min(one.ours["value"].value for one in self.played)

    @property
    def median(self) -> float:
        """Its median share of the bound."""
        return self.value("value")

    @property
    def expired(self) -> float:
        """Median share of the arrivals that it expired or stopped."""
        return statistics.median(one.ours["value"].expired for one in self.played)

    @property
    def most_expired(self) -> float:
        """The largest such share."""
        return max(one.ours["value"].expired for one in self.played)

    def value(self, policy: str) -> float:
        """A policy's median share of the bound, over the seeds on which it was played."""
        return statistics.median(one.ours[policy].value for one in self.played if policy in one.ours)

    def latency_s(self, policy: str) -> float:
        """A policy's median latency."""
        return statistics.median(one.ours[policy].latency_s for one in self.played if policy in one.ours)

    @property
    def best_rival(self) -> str:
        """The discipline with the largest median."""
        return max(disciplines.DISCIPLINES, key=self.rival)

    @property
    def ahead(self) -> float:
        """How far our median is above that of the best discipline, as a share of the bound."""
        return self.median - self.rival(self.best_rival)

    def rival(self, name: str) -> float:
        """A discipline's median share of the bound."""
        return statistics.median(one.rivals[name] for one in self.played)

    @property
    def misses(self) -> list[str]:
        """What it does not reach of what is wanted."""
        found = []
        if self.median < WANTED_SHARE.get(self.trace, WANTED_SHARE_ELSEWHERE):
            found.append("value")
        if self.expired > MOST_EXPIRED.get(self.trace, MOST_EXPIRED_ELSEWHERE):
            found.append("expired")
        if self.ahead < -MOST_BEHIND:
            found.append("rival")
        return found


def play(name: str, load: float, deadline_s: float, seeds: Sequence[int]) -> Cell:
    """Plays a cell."""
    played = [play_one(make(name, load, deadline_s, seed)) for seed in seeds]
    return Cell(trace=name, load=load, deadline_s=deadline_s, played=played)


def play_one(trace: Trace) -> Played:
    """Plays a trace by us and by all disciplines."""
    most = bound(trace)
    policies = ours.POLICIES if trace.seed <= FRESH_SEEDS else ["value"]
    stopping, stopped = disciplines.play(trace, disciplines.EarliestDeadline, stops=True)
    return Played(
        seed=trace.seed,
        arrivals=len(trace.units),
        bound=most,
        ours={policy: _judge(trace, policy, most) for policy in policies},
        rivals={name: disciplines.play(trace, one)[0] / most for name, one in disciplines.DISCIPLINES.items()},
        stopping=stopping / most,
        stopped=stopped / len(trace.units),
    )


def _judge(trace: Trace, policy: str, most: float) -> Policy:
    judged = ours.judge(ours.play(trace, policy))
    return Policy(value=judged.value / most, expired=judged.expired / len(trace.units), latency_s=judged.latency_s)
