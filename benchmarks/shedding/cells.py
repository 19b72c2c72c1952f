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

    def least(self, policy: str) -> float:
        """The smallest share of the bound that a policy reached."""
        return min(self._each(policy, "value"))

    def median(self, policy: str) -> float:
        """Its median share of the bound."""
        return statistics.median(self._each(policy, "value"))

    def expired(self, policy: str) -> float:
        """Median share of the arrivals that it expired or stopped."""
        return statistics.median(self._each(policy, "expired"))

    def most_expired(self, policy: str) -> float:
        """The largest such share."""
        return max(self._each(policy, "expired"))

    def latency_s(self, policy: str) -> float:
        """Median of its median latencies."""
        return statistics.median(self._each(policy, "latency_s"))

    def ahead(self, policy: str) -> float:
        """How far its median is above that of the best discipline, as a share of the bound."""
        return self.median(policy) - self.rival(self.best_rival)

    @property
    def best_rival(self) -> str:
        """The discipline with the largest median."""
        return max(disciplines.DISCIPLINES, key=self.rival)

    def rival(self, name: str) -> float:
        """A discipline's median share of the bound."""
        return statistics.median(one.rivals[name] for one in self.played)

    def misses(self, policy: str) -> list[str]:
        """What a policy does not reach of what is wanted."""
        found = []
        if self.median(policy) < WANTED_SHARE.get(self.trace, WANTED_SHARE_ELSEWHERE):
            found.append("value")
        if self.expired(policy) > MOST_EXPIRED.get(self.trace, MOST_EXPIRED_ELSEWHERE):
            found.append("expired")
        if self.ahead(policy) < -MOST_BEHIND:
            found.append("rival")
        return found

    def _each(self, policy: str, what: str) -> list[float]:
        return [getattr(one.ours[policy], what) for one in self.played]


def play(name: str, load: float, deadline_s: float, seeds: Sequence[int]) -> Cell:
    """Plays a cell."""
    played = [play_one(make(name, load, deadline_s, seed)) for seed in seeds]
    return Cell(trace=name, load=load, deadline_s=deadline_s, played=played)


def play_one(trace: Trace) -> Played:
    """Plays a trace by us and by all disciplines."""
    most = bound(trace)
    stopping, stopped = disciplines.play(trace, disciplines.EarliestDeadline, stops=True)
    return Played(
        seed=trace.seed,
        arrivals=len(trace.units),
        bound=most,
        ours={policy: _judge(trace, policy, most) for policy in ours.POLICIES},
        rivals={name: disciplines.play(trace, one)[0] / most for name, one in disciplines.DISCIPLINES.items()},
        stopping=stopping / most,
        stopped=stopped / len(trace.units),
    )


def _judge(trace: Trace, policy: str, most: float) -> Policy:
    judged = ours.judge(ours.play(trace, policy))
    return Policy(value=judged.value / most, expired=judged.expired / len(trace.units), latency_s=judged.latency_s)
