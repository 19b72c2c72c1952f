"""The circuit breaker of a pipeline: what keeps failing is not tried again and again (V17).

::

    closed ──(enough failed lately)──> open ──(canary_s later)──> half-open ──(the canary ends well)──> closed
                                         ^                            │
                                         └──(the canary fails too)────┘

A pure state machine over ends of attempts and the time that it is told; what its states do to the queue is written
elsewhere, as overrides: open is a pause, half-open a limit of 1.

Each stage run counts once, by its latest end, so that one unit that fails at each of its retries is one failure and
not a pipeline's. What counts as a failure says `COUNTED`: what is likely to befall the next unit too. A lost pilot, a
deadline and a stop by hand say nothing about the pipeline, nor does a store that is away, or a damaged input, which is
its own unit's trouble: such ends are passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from p3s_prefect.core.experiment import Breaker
from p3s_prefect.core.health import duration
from p3s_prefect.core.records import Failure

# A store that cannot be written fails every unit: paused, they wait for it instead of using up their retries.
COUNTED = frozenset({Failure.PAYLOAD, Failure.TIMEOUT, Failure.STORE})
# Good ends are counted by slices of the window, so that the memory is the same at any rate. The window may thus reach
# back by 1/60 further for them than for failures, which opens a breaker a little later, and never too early.
_SLICES = 60


class BreakerState(StrEnum):
    """State of a pipeline's breaker."""

    CLOSED = "closed"
    """All is well: the pipeline runs."""
    OPEN = "open"
    """The pipeline is paused."""
    HALF_OPEN = "half-open"
    """One stage at a time is let through: the canary."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of one attempt that says something about its pipeline. `*_at` is UTC in seconds since 1970."""

    at: float
    begun_at: float
    """When it was handed to a pilot."""
    stage: str
    stage_run_id: int
    trouble: str | None = None
    """Why it failed; None if it ended well."""


def end_of(
    *, at: float, begun_at: float, stage: str, stage_run_id: int, failure: Failure | None, reason: str
) -> End | None:
    """An attempt's end as a breaker counts it; None if it says nothing about the pipeline."""
    if failure is not None and failure not in COUNTED:
        return None
    trouble = None if failure is None else reason
    return End(at=at, begun_at=begun_at, stage=stage, stage_run_id=stage_run_id, trouble=trouble)


@dataclass(slots=True, kw_only=True)
class Circuit:
    """One pipeline's breaker.

    `ended`, `due` and `release` return whether the state has changed; `why` then says why, in words.
    """

    rule: Breaker
    state: BreakerState = BreakerState.CLOSED
    since: float = -math.inf
    """Since when it is in this state."""
    why: str = ""
    _failed: dict[int, End] = field(default_factory=dict)
    _good: dict[int, int] = field(default_factory=dict)
    _suspects: frozenset[str] = frozenset()
    """The stages whose failures opened it, of which one must end well; empty, as after a restart: any."""

    def ended(self, end: End) -> bool:
        """An attempt has ended."""
        if self.state is BreakerState.CLOSED:
            return self._count(end)
        # What began before the canary says nothing about whether the trouble is over.
        if self.state is BreakerState.HALF_OPEN and end.begun_at >= self.since:
            return self._judge(end)
        return False

    def due(self, now: float) -> bool:
        """The time has come to `now`: an open breaker may let its canary through."""
        if self.state is not BreakerState.OPEN:
            return False
        self.since = min(self.since, now)  # a clock that was set back must not keep it open for as long
        if now < self.wake_at():
            return False
        self._enter(BreakerState.HALF_OPEN, now, f"one stage at a time, to see whether it still fails: {self.why}")
        return True

    def wake_at(self) -> float:
        """When `due` may change something; infinite if only a command, or an end, does."""
        if self.state is not BreakerState.OPEN or self.rule.canary_s is None:
            return math.inf
        return self.since + self.rule.canary_s

    def release(self, now: float) -> bool:
        """Somebody closed it by command: the window starts anew."""
        if self.state is BreakerState.CLOSED:
            return False
        self._enter(BreakerState.CLOSED, now, "released by command")
        return True

    # --- inside -------------------------------------------------------------------------------------------------

    def _count(self, end: End) -> bool:
        self._forget(end.at)
        self._failed.pop(end.stage_run_id, None)
        if end.trouble is None:
            place = self._slice(end.at)
            self._good[place] = self._good.get(place, 0) + 1
            return False
        self._failed[end.stage_run_id] = end
        failed, ends = len(self._failed), len(self._failed) + sum(self._good.values())
        if failed < self.rule.failures or failed < self.rule.share * ends:
            return False
        self._suspects = frozenset(found.stage for found in self._failed.values())
        lately = duration(self.rule.window_s)
        self._enter(
            BreakerState.OPEN,
            end.at,
            f"{failed} of the last {ends} stages failed, within {lately}; the newest, {end.stage}: {end.trouble}",
        )
        return True

    def _judge(self, canary: End) -> bool:
        if canary.trouble is not None:
            self._suspects |= {canary.stage}
            self._enter(BreakerState.OPEN, canary.at, f"{canary.stage} failed again: {canary.trouble}")
            return True
        if self._suspects and canary.stage not in self._suspects:
            return False
        self._enter(BreakerState.CLOSED, canary.at, f"{canary.stage} ended well")
        return True

    def _enter(self, state: BreakerState, at: float, why: str) -> None:
        self.state, self.since, self.why = state, at, why
        self._failed, self._good = {}, {}
        if state is BreakerState.CLOSED:
            self._suspects = frozenset()

    def _forget(self, now: float) -> None:
        """Drops what lies outside the window, in the future too, where a clock was set back."""
        begins = now - self.rule.window_s
        for known in list(self._failed):
            if begins < self._failed[known].at <= now:
                break
            del self._failed[known]
        first, last = self._slice(begins), self._slice(now)
        if self._good and not (first <= next(iter(self._good)) and next(reversed(self._good)) <= last):
            self._good = {place: count for place, count in self._good.items() if first <= place <= last}

    def _slice(self, at: float) -> int:
        return math.floor(at * _SLICES / self.rule.window_s)
