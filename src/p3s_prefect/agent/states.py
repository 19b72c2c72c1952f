"""How a stage run looks in Prefect: the states that tell the truth about it, in Prefect's types and our words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from p3s_prefect.core.at_limit import says_killed_at_limit
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import AttemptRow, StageRow

# Prefect keeps the newest of two states by their times, to a microsecond, and takes none whose time is the same.
_NEXT_S = 2e-6


class Kind(StrEnum):
    """Prefect's types of states, as far as they are used here."""

    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.CRASHED, Kind.CANCELLED})


@dataclass(frozen=True, kw_only=True)
class RecordedState:
    """A state in Prefect. `at` is UTC in seconds since 1970."""

    kind: Kind
    name: str
    at: float
    message: str = ""


_WAITING = {
    StageState.WAITING: (Kind.PENDING, "Waiting", "for its parents"),
    StageState.QUEUED: (Kind.PENDING, "Queued", "for a slot"),
    StageState.HELD: (Kind.PAUSED, "Held", "by hand"),
}
# How a stage run ends that no attempt has ended. What was left out on purpose is no failure.
_SETTLED = {
    StageState.DONE: (Kind.COMPLETED, "Completed"),
    StageState.PRESCALED: (Kind.COMPLETED, "Prescaled"),
    StageState.SHED: (Kind.CANCELLED, "Shed"),
    StageState.EXPIRED: (Kind.FAILED, "Expired"),
    StageState.FAILED: (Kind.FAILED, "Failed"),
    StageState.BLOCKED: (Kind.CANCELLED, "Blocked"),
    StageState.SUPERSEDED: (Kind.CANCELLED, "Superseded"),
    StageState.CANCELLED: (Kind.CANCELLED, "Cancelled"),
}
_ENDED = {
    "done": (Kind.COMPLETED, "Completed"),
    "failed": (Kind.FAILED, "Failed"),
    "lost": (Kind.CRASHED, "PilotLost"),
    "stopped": (Kind.CANCELLED, "Stopped"),
    "expired": (Kind.FAILED, "Expired"),
}


def waits_again(stage: StageRow) -> bool:
    """Whether a stage run was queued after its last attempt, so that what follows is not that attempt's doing."""
    if not stage.attempts:
        return True
    last = stage.attempts[-1]
    # Where the states agree, the attempt has brought it about, whatever a clock that was set back says.
    return stage.state != last.state and stage.queued_at is not None and stage.queued_at > last.opened_at


def attempt_states(attempt: AttemptRow) -> tuple[RecordedState, ...]:
    """The states of one attempt, oldest first."""
    name = "Retrying" if attempt.number else "Running"
    running = RecordedState(kind=Kind.RUNNING, name=name, at=attempt.opened_at, message=_where(attempt))
    if attempt.state == "running":
        return (running,)
    kind, name = _ENDED[attempt.state]
    if says_killed_at_limit(attempt.reason):
        name = "TimedOut"
    ended_at = attempt.ended_at if attempt.ended_at is not None else attempt.opened_at
    return in_order([running, RecordedState(kind=kind, name=name, at=ended_at, message=attempt.reason)])


def unstarted_state(stage: StageRow, *, arrived_at: float, changed_at: float | None) -> RecordedState:
    """The state of a stage run for which no attempt is under way.

    `changed_at` is when something happened to it last, as far as that is known.
    """
    state = StageState(stage.state)
    begun_at = arrived_at if stage.queued_at is None else stage.queued_at
    if state.is_terminal:
        kind, name = _SETTLED[state]
        settled_at = begun_at if stage.settled_at is None else stage.settled_at
        return RecordedState(kind=kind, name=name, at=max(settled_at, begun_at + _NEXT_S), message=stage.reason)
    kind, name, why = _WAITING[state]
    if state is StageState.QUEUED and stage.attempts:
        kind, name = Kind.SCHEDULED, "AwaitingRetry"
    at = max(begun_at, changed_at if changed_at is not None else begun_at)
    return RecordedState(kind=kind, name=name, at=at, message=stage.reason or why)


def in_order(states: Sequence[RecordedState]) -> tuple[RecordedState, ...]:
    """The same states with times that rise, also where the clocks of two machines disagree."""
    found: list[RecordedState] = []
    for state in states:
        at = max(state.at, found[-1].at + _NEXT_S) if found else state.at
        found.append(RecordedState(kind=state.kind, name=state.name, at=at, message=state.message))
    return tuple(found)


def _where(attempt: AttemptRow) -> str:
    return f"on {attempt.pilot}" if attempt.pilot else ""
