"""Estimates that follow what happens quickly, and are not thrown off by single events: service times and rates."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

# The mean of 64 service times has an error of an eighth where they spread as an exponential does, of a fifth where
# they are lognormal with sigma 1.5; and a change is followed within as many events, which is 4 services of 16 slots.
_WINDOW = 64
# Of what begins at once on all slots the short ones end first: the last 64 of 140 that began together were a fifth
# longer than the mean.
_SERVICES_A_SLOT = 4
# A rate is not told from less than so much of the time in which it fades: a first bunch would look like a flood.
_LEAST_SEEN = 0.25
# After a pause of so many times the one in which it fades, less than a hundredth of a rate is left: it begins anew.
_FORGOTTEN = 5.0
# A single outlier, such as a payload that hung until it was killed, does not move the mean.
_FEWEST_TO_WINSORIZE = 8


class ServiceTimes:
    """How long a stage keeps its slot, from the most recent services."""

    __slots__ = ("_recent", "_sorted", "_total_s", "_window", "fastest_s", "is_known")

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._total_s = 0.0
        self._window = _WINDOW
        self.is_known = False
        """Whether one was done."""
        self.fastest_s = 0.0
        """The shortest of all that were done; 0 before the first."""

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, seconds: float, *, is_done: bool) -> None:
        """A service has ended, well or otherwise; a negative time, of a clock that stepped, counts as 0."""
        seconds = max(0.0, seconds)
        if is_done:
            self.fastest_s = min(seconds, self.fastest_s) if self.is_known else seconds
            self.is_known = True
        while len(self._recent) >= self._window:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._total_s -= oldest
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        self._total_s += seconds

    def keep(self, slots: int) -> None:
        """So many slots serve it: the most recent services are some of each."""
        self._window = max(_WINDOW, _SERVICES_A_SLOT * slots)

    @property
    def mean_s(self) -> float:
        """The mean, in which the longest counts as the second longest; 0 before the first."""
        number = len(self._sorted)
        if number < _FEWEST_TO_WINSORIZE:
            return self._total_s / number if number else 0.0
        return max(0.0, self._total_s - self._sorted[-1] + self._sorted[-2]) / number

    def quantile_s(self, share: float) -> float:
        """What a share of them did not exceed; 0 before the first."""
        return self._sorted[int(share * (len(self._sorted) - 1))] if self._sorted else 0.0


class Rate:
    """How much happens in a second, over a recent time that fades out."""

    __slots__ = ("_amount", "_at", "_since", "fades_s")

    def __init__(self, fades_s: float = 1.0) -> None:
        self.fades_s = fades_s
        self._amount = 0.0
        self._at = -math.inf
        self._since = math.inf

    def add(self, amount: float, now: float) -> None:
        """Something happened; on a clock that was set back, just after what happened last."""
        passed_s = now - self._at
        if passed_s > _FORGOTTEN * self.fades_s:
            self._since = now
        elif passed_s < 0:
            self._since += passed_s
        self._amount = self._faded(now) + amount
        self._at = now

    def at(self, now: float) -> float:
        """The rate [1/s]."""
        return self._faded(now) / self.fades_s

    def since_first(self, now: float) -> float:
        """The rate [1/s] from what happened first, or first after a long pause, where that is not long ago."""
        # On a clock that was set back what happened last is in the future.
        seen = 1 - math.exp(-max(0.0, max(now, self._at) - self._since) / self.fades_s)
        return self.at(now) / max(_LEAST_SEEN, seen)

    def _faded(self, now: float) -> float:
        passed_s = now - self._at
        return self._amount * math.exp(-passed_s / self.fades_s) if passed_s > 0 else self._amount
