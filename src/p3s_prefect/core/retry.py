"""What becomes of a stage run whose execution gave no results: has the world changed, and is there time?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from p3s_prefect.core import dag
from p3s_prefect.core.experiment import Pipeline, Stage
from p3s_prefect.core.records import Failure, SubJobFact, Transition
from p3s_prefect.core.states import StageState, SubJobState

# A unit that takes its pilot down with it must not take all of them: the third loss counts as the unit's own failure.
MOST_LOSSES = 3
MOST_BACKOFF_DOUBLINGS = 6
# The first is about as long as whoever asks in vain in haste. With the last, a thousand units that wait for the store
# make 12 attempts a second, and go on at most so long after it is back.
_FIRST_AWAY_S = 5.0
MOST_AWAY_S = 80.0
# With their waits a quarter of an hour to half an hour: in it the disks of a store are mounted again. Which object can
# never be read shows later, and has kept its group open for so long.
MOST_DISTURBED = 20


class Which(StrEnum):
    """Which units of a group are processed when somebody asks for it. What is open is never doubled."""

    MISSING = "missing"
    """Those without results: never begun, left out, given up, cancelled, or damaged in the store since. What failed is
    left alone."""
    FAILED = "failed"
    """Those that failed: a new attempt of what failed, in the same pass (B3)."""
    ALL = "all"
    """All of them: what has ended is processed again in a new pass (B2)."""


MISSING = frozenset(
    {
        SubJobState.PRESCALED,
        SubJobState.SHED,
        SubJobState.EXPIRED,
        SubJobState.BLOCKED,
        SubJobState.SUPERSEDED,
        SubJobState.CANCELLED,
    }
)
"""A unit that ended so has no results, and nothing of it failed: it was given up, left out, or never begun."""


@dataclass(frozen=True, kw_only=True)
class NextState:
    """The next state of the stage run; back in the queue, it waits for `delay_s`."""

    state: StageState
    delay_s: float = 0.0


def judged(failure: Failure, times: int) -> Failure:
    """What a failure counts as, after so many of the stage run's attempts ended with the same words as this one.

    Where an attempt's words have a key of its own, its execution's place is left out of them.
    """
    if failure is not Failure.DISTURBED:
        return failure
    return Failure.AWAY if times < MOST_DISTURBED else Failure.STORE


def after_failure(stage: Stage, failure: Failure, failures: int, attempts: int = 1) -> NextState:
    """The next state after an execution that failed.

    `failure` is what it was `judged` to be. `failures` counts this one too, unless what it needs was away, and
    `attempts` all that there were.
    """
    match failure:
        case Failure.AWAY:
            return NextState(state=StageState.QUEUED, delay_s=away_s(attempts))
        case Failure.DEADLINE:
            return NextState(state=StageState.EXPIRED)
        case Failure.STOPPED:
            return NextState(state=StageState.QUEUED)
        case Failure.INPUT:
            return NextState(state=StageState.FAILED)
    if failures > stage.retries:
        return NextState(state=StageState.FAILED)
    return NextState(state=StageState.QUEUED, delay_s=backoff_s(stage, failures))


def backoff_s(stage: Stage, failures: int) -> float:
    """How long a stage waits before it is tried again, after so many failures."""
    doublings = min(failures - 1, MOST_BACKOFF_DOUBLINGS)
    return stage.backoff_s * float(2**doublings)


def away_s(attempts: int) -> float:
    """How long a stage waits for what could not be reached, after so many attempts."""
    return float(min(_FIRST_AWAY_S * 2 ** min(attempts - 1, MOST_BACKOFF_DOUBLINGS), MOST_AWAY_S))


def after_loss(losses: int) -> NextState:
    """The next state after a stage run whose pilot was lost; `losses` counts this one too."""
    return NextState(state=StageState.FAILED if losses >= MOST_LOSSES else StageState.QUEUED)


def retried(pipeline: Pipeline, fact: SubJobFact, reason: str, only: str | None = None) -> list[Transition]:
    """What a retry asks of a sub-job: what failed is queued, and what was blocked by nothing else waits again (B3).

    With `only`, what failed in that stage, and what waits for it.
    """
    states = {stage.stage: stage.state for stage in fact.stages}
    wanted = set(states) if only is None else {only, *dag.descendants(pipeline, only)}
    order = {name: place for place, name in enumerate(dag.topological_order(pipeline))}
    changes = []
    for stage in sorted(fact.stages, key=lambda stage: order[stage.stage]):
        if stage.stage not in wanted:
            continue
        new = _taken_back(stage.state, [states[name] for name in dag.parents(pipeline, stage.stage) if name in states])
        if new is not None:
            states[stage.stage] = new
            changes.append(Transition(stage_run_id=stage.id, old=stage.state, new=new, reason=reason))
    return changes


def _taken_back(state: StageState, parents: list[StageState]) -> StageState | None:
    if state is StageState.FAILED:
        return StageState.QUEUED
    may_go_on = all(parent is StageState.DONE or not parent.is_terminal for parent in parents)
    return StageState.WAITING if state is StageState.BLOCKED and may_go_on else None
