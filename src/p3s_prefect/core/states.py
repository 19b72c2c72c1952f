"""States of a stage run, the moves between them, and the sub-job's state that follows from them.

::

    waiting ──> queued ──> running ──> done
       │           │  ^       │  └──> failed ──(retry)──> queued
       │           │  └───────┘ (tried again, pilot lost, station stopped)
       ├── held ───┤
       └─> blocked └─> expired, shed, cancelled, superseded
           (retry) ──> waiting

`prescaled` is decided before the unit is let in: such a stage run begins in its terminal state.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class StageState(StrEnum):
    """State of a stage run."""

    WAITING = "waiting"
    """For its parents."""
    QUEUED = "queued"
    """For a slot; where its number is not below its q, for one that would idle or go to a lower priority."""
    RUNNING = "running"
    HELD = "held"
    """By hand."""
    DONE = "done"
    PRESCALED = "prescaled"
    """Left out by a random choice made in advance."""
    SHED = "shed"
    """Left out at random in overload, and no slot was left for it."""
    EXPIRED = "expired"
    """Given up at its deadline."""
    FAILED = "failed"
    BLOCKED = "blocked"
    """An ancestor did not finish."""
    SUPERSEDED = "superseded"
    """A fallback took over."""
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the account counts it as settled."""
        return self in TERMINAL


class SubJobState(StrEnum):
    """State of a sub-job: open (`expected`, `arrived`), or that of its account."""

    EXPECTED = "expected"
    ARRIVED = "arrived"
    DONE = "done"
    PRESCALED = "prescaled"
    SHED = "shed"
    EXPIRED = "expired"
    FAILED = "failed"
    BLOCKED = "blocked"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"


_S = StageState
_GIVEN_UP = {_S.EXPIRED, _S.SHED, _S.CANCELLED, _S.SUPERSEDED}

MOVES: dict[StageState, frozenset[StageState]] = {
    _S.WAITING: frozenset({_S.QUEUED, _S.HELD, _S.BLOCKED} | _GIVEN_UP),
    _S.QUEUED: frozenset({_S.RUNNING, _S.HELD, _S.BLOCKED} | _GIVEN_UP),
    _S.HELD: frozenset({_S.WAITING, _S.QUEUED, _S.BLOCKED} | _GIVEN_UP),
    _S.RUNNING: frozenset({_S.DONE, _S.FAILED, _S.QUEUED, _S.EXPIRED, _S.CANCELLED}),
    # The only way out of a terminal state is a retry: a new attempt in the same pass, and what was blocked by that
    # failure waits again.
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.BLOCKED: frozenset({_S.WAITING}),
} | {state: frozenset() for state in _GIVEN_UP | {_S.DONE, _S.PRESCALED}}

LEFT_OUT = frozenset({_S.PRESCALED, _S.SHED})
"""Left out by chance, with a known probability of being kept: what was kept stands for it."""

WITHOUT_RESULT = frozenset({_S.FAILED, _S.EXPIRED, _S.BLOCKED, _S.CANCELLED})
"""Ended without a result for which somebody waits; what chance left out is not missed, and a fallback takes over."""

TERMINAL = frozenset(_GIVEN_UP | {_S.DONE, _S.PRESCALED, _S.FAILED, _S.BLOCKED})


def may_move(old: StageState, new: StageState) -> bool:
    """Whether a stage run may go from `old` to `new`."""
    return new in MOVES[old]


def sub_job_state(stages: Iterable[StageState]) -> SubJobState:
    """A sub-job's state, from its stage runs in topological order.

    Open while any stage is. All done, or done but for stages that the prescale left out: done. Otherwise the first
    stage that settled otherwise says why, though stages before it may have published their results.
    """
    states = list(stages)
    if any(not state.is_terminal for state in states):
        return SubJobState.ARRIVED
    others = [state for state in states if state not in (_S.DONE, _S.PRESCALED)]
    if others:
        return SubJobState(others[0].value)
    return SubJobState.DONE if _S.DONE in states else SubJobState.PRESCALED
